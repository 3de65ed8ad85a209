//! A real etcd for the play, on an address of loopback of its own.

use bwvisu_runner::store::etcd::EtcdConfig;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    /// Removed when the play is over.
    _folder: tempfile::TempDir,
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
        Self { _folder: folder, address, child }
    }

    pub fn config(&self) -> EtcdConfig {
        let endpoints = vec![format!("http://{}:2379", self.address)];
        EtcdConfig { endpoints, user: None, tls: None, timeout: EtcdConfig::DEFAULT_TIMEOUT }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its database, with the room in it that is free again, as it compares it with its quota; and without.
    pub fn database_mib(&self) -> [f64; 2] {
        let mut page = String::new();
        let mut socket = TcpStream::connect((self.address, 2379)).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        socket.read_to_string(&mut page).unwrap();
        ["etcd_mvcc_db_total_size_in_bytes ", "etcd_mvcc_db_total_size_in_use_in_bytes "].map(|name| {
            let figure = page.lines().find_map(|line| line.strip_prefix(name)).expect("etcd tells its size");
            figure.parse::<f64>().unwrap() / f64::from(1 << 20)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
