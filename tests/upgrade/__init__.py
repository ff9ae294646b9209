"""What do devices and applications notice while services go from one build to the next, and back?"""
