"""What do devices notice while the fleet of nodes moves? Thousands of them, behind a balancer, on real processes."""
