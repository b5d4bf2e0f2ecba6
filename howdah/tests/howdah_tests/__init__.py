"""What the tests of the library share."""
