//! Development only: goldens, closeness, test servers.
