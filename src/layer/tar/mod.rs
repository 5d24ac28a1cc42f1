//! Reading tar archives that may be hostile.
