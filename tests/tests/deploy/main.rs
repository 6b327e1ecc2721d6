//! The configuration files in `deploy/`, in use.

mod nginx;
mod systemd;
