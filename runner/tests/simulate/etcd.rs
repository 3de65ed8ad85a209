//! A real etcd for the play, on an address of loopback of its own.

use bwvisu_runner::store::etcd::EtcdConfig;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    /// Removed when the play is over.
    folder: tempfile::TempDir,
    address: Ipv4Addr,
    child: Child,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Another play's may still be there.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 77, high, low);
        assert!(TcpStream::connect((address, 2379)).is_err(), "something listens on {address} already");
        let (client, peer) = (format!("http://{address}:2379"), format!("http://{address}:2380"));
        let child = Command::new("etcd")
            .arg(format!("--data-dir={}", folder.path().join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .args(["--auto-compaction-retention=5m", "--quota-backend-bytes=4294967296"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is not installed: see tests/install-packages");
        let begun = Instant::now();
        while TcpStream::connect((address, 2379)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "etcd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { folder, address, child }
    }

    pub fn config(&self) -> EtcdConfig {
        let endpoints = vec![format!("http://{}:2379", self.address)];
        EtcdConfig { endpoints, user: None, tls: None, timeout: EtcdConfig::DEFAULT_TIMEOUT }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What etcd compares with its quota: its database, with room in it that is free again. Not its log, which it keeps short by itself.
    pub fn database(&self) -> PathBuf {
        self.folder.path().join("data/member/snap/db")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
