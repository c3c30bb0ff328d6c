//! A connection to another shard: credentials and certificates as this server uses them towards its master. Contract:
//! docs/contract/commands.md 8.4. Called on the threads of links.

use std::{collections::HashMap, fs, path::Path, sync::Once, time::Duration};

use redis::{
    Client, ClientTlsConfig, Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, TlsCertificates,
};

use super::{Cluster, topology::Address};
use crate::server::{asking::config, lock};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);

/// Options of the server that tell how shards talk to each other.
struct Settings(HashMap<String, String>);

impl Settings {
    fn read(cluster: &Cluster) -> Self {
        let mut settings = HashMap::new();
        lock::with_lock(|lock| {
            for pattern in ["tls-*", "master*", "port"] {
                settings.extend(config(lock, cluster.engine.features, pattern));
            }
        });
        Self(settings)
    }

    /// An option that is set.
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// True if shards talk over TLS. `told`: by RG.CLUSTERSET, not by Redis Cluster.
    fn wants_tls(&self, told: bool) -> bool {
        let only_tls = self.get("port") == Some("0");
        let can = self.get("tls-port").is_some_and(|port| port != "0") && self.get("tls-cert-file").is_some();
        self.get("tls-cluster") == Some("yes") || (can && (only_tls || told))
    }
}

/// Connects to a shard and authenticates.
///
/// # Errors
/// Why there is no connection, for the log.
pub fn connect(cluster: &Cluster, address: &Address) -> Result<Connection, String> {
    let settings = Settings::read(cluster);
    let text = |error: redis::RedisError| error.to_string();
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    match &address.password {
        Some(password) if !password.is_empty() => login = login.set_password(password),
        Some(_) => {}
        None => {
            if let Some(password) = settings.get("masterauth") {
                login = login.set_password(password);
                if let Some(user) = settings.get("masteruser") {
                    login = login.set_username(user);
                }
            }
        }
    }
    let (host, port) = (address.host.clone(), address.port);
    let client = if settings.wants_tls(address.password.is_some()) {
        let plain = ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        };
        let info = info(plain, login).map_err(text)?;
        let mut client = Client::build_with_tls(info, certificates(&settings)?).map_err(text)?;
        // The certificate is checked, not the name in it: shards are known by their addresses.
        let info = client.get_connection_info().clone();
        let mut addr = info.addr().clone();
        addr.set_danger_accept_invalid_hostnames(true);
        client = Client::open(info.set_addr(addr)).map_err(text)?;
        client
    } else {
        Client::open(info(ConnectionAddr::Tcp(host, port), login).map_err(text)?).map_err(text)?
    };
    client.get_connection_with_timeout(CONNECT).map_err(text)
}

fn info(addr: ConnectionAddr, login: RedisConnectionInfo) -> redis::RedisResult<ConnectionInfo> {
    Ok(addr.into_connection_info()?.set_redis_settings(login))
}

fn certificates(settings: &Settings) -> Result<TlsCertificates, String> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let read = |path: &str| fs::read(path).map_err(|error| format!("{path}: {error}"));
    let own = |client: &str, server: &str| settings.get(client).or_else(|| settings.get(server)).map(read);
    let certificate = own("tls-client-cert-file", "tls-cert-file").transpose()?;
    let key = own("tls-client-key-file", "tls-key-file").transpose()?;
    let authorities = match (settings.get("tls-ca-cert-file"), settings.get("tls-ca-cert-dir")) {
        (Some(file), _) => Some(read(file)?),
        (None, Some(folder)) => {
            Some(read_all(Path::new(folder)).map_err(|error| format!("{folder}: {error}"))?)
        }
        (None, None) => None,
    };
    Ok(TlsCertificates {
        client_tls: certificate
            .zip(key)
            .map(|(client_cert, client_key)| ClientTlsConfig {
                client_cert,
                client_key,
            }),
        root_cert: authorities,
    })
}

/// All files of a folder, one behind the other.
fn read_all(folder: &Path) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            all.extend(fs::read(path)?);
            all.push(b'\n');
        }
    }
    Ok(all)
}
