//! The servers that are compared, and the APIs that they are loaded by.

/// A server with the API that it is loaded by. Each has nodes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Peer {
    /// brink, which is always measured
    #[value(skip)]
    Brink,
    /// etcd by gRPC
    Etcd,
    /// etcd by its JSON gateway
    EtcdJson,
    /// Redis with two replicas
    Redis,
    /// The key-value store of NATS JetStream
    Nats,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brink => "brink",
            Self::Etcd => "etcd",
            Self::EtcdJson => "etcd-json",
            Self::Redis => "redis",
            Self::Nats => "nats",
        }
    }

    /// The program of a server that is not built here, and its Debian package.
    pub(super) fn package(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Brink => None,
            Self::Etcd | Self::EtcdJson => Some(("/usr/bin/etcd", "etcd-server")),
            Self::Redis => Some(("/usr/bin/redis-server", "redis-server")),
            Self::Nats => Some(("/usr/sbin/nats-server", "nats-server")),
        }
    }

    /// The value of the loader's `--api`.
    pub(super) fn api(self) -> &'static str {
        match self {
            Self::Brink => "brink",
            Self::Etcd => "etcd-grpc",
            Self::EtcdJson => "etcd",
            Self::Redis => "redis",
            Self::Nats => "nats",
        }
    }
}
