//! What kind of error an error reply is, by the code in front of its text.

/// A command that Redis did not do, by the reason.
///
/// Source: Redis 7, `src/server.c` (`createSharedObjects`), `src/script.c`, `src/cluster.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// NOSCRIPT: flushed, restarted, failed over.
    NoScript,
    /// OOM: at `maxmemory`, and nothing may be evicted. Redis is up and reads, but does not write.
    OutOfMemory,
    /// READONLY: a replica.
    ReadOnly,
    /// LOADING: Redis reads its data set at start.
    Loading,
    /// BUSY: somebody's script runs for too long.
    Busy,
    /// NOAUTH: a password is asked for.
    Unauthenticated,
    /// WRONGPASS: not this one.
    WrongPassword,
    /// NOPERM: the user's rules exclude the command or the key.
    NotPermitted,
    /// MOVED, ASK, CROSSSLOT: a cluster, which this client does not follow.
    Cluster,
    /// CLUSTERDOWN: a cluster without a quorum.
    ClusterDown,
    /// MASTERDOWN: a replica that has lost its master and may not answer.
    MasterDown,
    /// MISCONF, NOREPLICAS: writes are stopped until an operator has seen to the disk or the replicas.
    WritesStopped,
    /// Any other; most often ERR.
    Other,
}

/// Codes, and what they mean.
const CODES: [(&[u8], Refusal); 15] = [
    (b"NOSCRIPT", Refusal::NoScript),
    (b"OOM", Refusal::OutOfMemory),
    (b"READONLY", Refusal::ReadOnly),
    (b"LOADING", Refusal::Loading),
    (b"BUSY", Refusal::Busy),
    (b"NOAUTH", Refusal::Unauthenticated),
    (b"WRONGPASS", Refusal::WrongPassword),
    (b"NOPERM", Refusal::NotPermitted),
    (b"MOVED", Refusal::Cluster),
    (b"ASK", Refusal::Cluster),
    (b"CROSSSLOT", Refusal::Cluster),
    (b"CLUSTERDOWN", Refusal::ClusterDown),
    (b"MASTERDOWN", Refusal::MasterDown),
    (b"MISCONF", Refusal::WritesStopped),
    (b"NOREPLICAS", Refusal::WritesStopped),
];

impl Refusal {
    /// How many kinds there are.
    pub const COUNT: usize = Refusal::Other as usize + 1;

    /// The kind of the error with this text, which comes without its leading `-`.
    pub fn of(text: &[u8]) -> Refusal {
        let code = first_word(text);
        if code == b"ERR"
            && text.starts_with(b"ERR Error running script")
            && let Some(at) = memchr::memmem::find(text, b": -")
        {
            // Redis up to 6.2 wraps what a script's own command was answered: `ERR Error running script (call to f_…):
            // @user_script:1: @user_script: 1: -OOM command not allowed …`.
            return of_code(first_word(&text[at + 3..]));
        }
        of_code(code)
    }

    /// Whether no command would fare better on this connection: another server may by now answer to the address, or this
    /// one may have come to.
    pub fn ends_connection(self) -> bool {
        matches!(
            self,
            Refusal::ReadOnly
                | Refusal::Loading
                | Refusal::Unauthenticated
                | Refusal::ClusterDown
                | Refusal::MasterDown
        )
    }

    /// Whether other commands of the same kind would be refused too, whatever their keys.
    pub fn concerns_all(self) -> bool {
        !matches!(self, Refusal::NoScript | Refusal::Cluster | Refusal::Other)
    }

    /// A stable word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::NoScript => "no_script",
            Refusal::OutOfMemory => "out_of_memory",
            Refusal::ReadOnly => "read_only",
            Refusal::Loading => "loading",
            Refusal::Busy => "busy",
            Refusal::Unauthenticated => "unauthenticated",
            Refusal::WrongPassword => "wrong_password",
            Refusal::NotPermitted => "not_permitted",
            Refusal::Cluster => "cluster",
            Refusal::ClusterDown => "cluster_down",
            Refusal::MasterDown => "master_down",
            Refusal::WritesStopped => "writes_stopped",
            Refusal::Other => "other",
        }
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    &text[..memchr::memchr(b' ', text).unwrap_or(text.len())]
}

fn of_code(code: &[u8]) -> Refusal {
    CODES.iter().find(|(known, _)| *known == code).map_or(Refusal::Other, |(_, refusal)| *refusal)
}
