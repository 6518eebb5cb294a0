"""What the commerce prefilter's scripts share; one noun a module."""
