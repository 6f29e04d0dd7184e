//! Memory of this host that another process maps: a sealed memfd.
