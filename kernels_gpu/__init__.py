"""Where Triton kernels will be, under the file and function names of kernels_cpu. None yet."""
