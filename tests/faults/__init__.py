"""What do real processes keep of what is promised, under every fault that a machine can make for itself?"""
