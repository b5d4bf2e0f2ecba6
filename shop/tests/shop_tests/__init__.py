"""What the tests of Shop share."""
