//! Tar archives, read as a stream (pure).
