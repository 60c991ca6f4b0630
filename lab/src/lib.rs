//! Before and after, measured on your own machine: a frame for experiments.
