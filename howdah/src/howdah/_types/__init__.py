"""Values that the driver must store and read exactly."""
