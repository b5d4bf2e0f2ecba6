"""Multi-row writes: the input rows, COPY, INSERT, UPDATE, upserts, and the location of a rejected row."""
