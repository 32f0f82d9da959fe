//! Finds the address that viewers reach the media ports at, where nobody can write it down beforehand: a machine in a cloud doesn't know
//! its public address, and a load balancer's is known once it is there.
//!
//! `edge.public_ip_from` names who knows. A node that finds none doesn't start: its answers would lead nowhere.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use headwater_edge::config::PublicIpFrom;
use reqwest::{Certificate, Client};
use rtc::stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Getter, Message, Setter};
use rtc::stun::xoraddr::XorMappedAddress;
use serde_json::Value;
use tokio::net::{UdpSocket, lookup_host};
use tracing::info;

/// How long whoever knows may take: load balancers appear within a minute or so. Less than the minute that the chart's startup probe waits, so
/// that what is missing stands in the log.
const DEADLINE: Duration = Duration::from_secs(50);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Where Kubernetes puts what a pod needs to talk to its API.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Asks until there is an address.
///
/// # Errors
/// If there is none in time; the error says what was missing last.
pub(super) async fn public_ips(from: &PublicIpFrom) -> anyhow::Result<Vec<IpAddr>> {
    let mut missing = anyhow::anyhow!("no answer");
    let asking = async {
        loop {
            match ask(from).await {
                Ok(found) => return found,
                Err(error) => {
                    // Once each: some wait for most of a minute.
                    if error.to_string() != missing.to_string() {
                        info!(%from, error = format!("{error:#}"), "no public address yet");
                    }
                    missing = error;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    if let Ok(found) = tokio::time::timeout(DEADLINE, asking).await {
        info!(%from, ?found, "public address");
        return Ok(found);
    }
    let waited = DEADLINE.as_secs();
    Err(missing.context(format!(
        "edge.public_ip_from = \"{from}\": no address for viewers after {waited} s"
    )))
}

async fn ask(from: &PublicIpFrom) -> anyhow::Result<Vec<IpAddr>> {
    let found = match from {
        PublicIpFrom::Node(name) => {
            let node = Api::of_pod()?.get(&format!("/api/v1/nodes/{name}")).await?;
            external_addresses(&node)
        }
        PublicIpFrom::Service { namespace, name } => {
            let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
            let service = Api::of_pod()?.get(&path).await?;
            let (mut ips, hosts) = ingress_addresses(&service);
            for host in hosts {
                let resolved = lookup_host((host.as_str(), 0)).await;
                ips.extend(
                    resolved
                        .with_context(|| host.clone())?
                        .map(|address| address.ip()),
                );
            }
            ips
        }
        PublicIpFrom::Stun(server) => {
            let server = lookup_host(server)
                .await
                .with_context(|| server.clone())?
                .next();
            vec![mapped_address(server.context("its name has no address")?).await?]
        }
    };
    ensure!(
        !found.is_empty(),
        "{}",
        match from {
            PublicIpFrom::Node(_) => "the node has no ExternalIP",
            PublicIpFrom::Service { .. } => "the load balancer has no address yet",
            PublicIpFrom::Stun(_) => "no answer",
        }
    );
    Ok(found)
}

/// Kubernetes' API, as a pod sees it.
struct Api {
    client: Client,
    base: String,
    token: String,
}

impl Api {
    fn of_pod() -> anyhow::Result<Self> {
        let variable =
            |name| std::env::var(name).with_context(|| format!("not in a pod: {name} isn't set"));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Self::new(&format!("https://{host}:{port}"), Path::new(ACCOUNT))
    }

    fn new(base: &str, account: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| -> anyhow::Result<String> {
            let path: PathBuf = account.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "{}: the pod has no token for Kubernetes' API",
                    path.display()
                )
            })
        };
        let roots = Certificate::from_pem_bundle(read("ca.crt")?.as_bytes()).context("ca.crt")?;
        Ok(Self {
            client: Client::builder()
                .tls_certs_only(roots)
                .timeout(TIMEOUT)
                .no_proxy()
                .build()?,
            base: base.to_owned(),
            token: read("token")?.trim().to_owned(),
        })
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self
            .client
            .get(format!("{}{path}", self.base))
            .bearer_auth(&self.token);
        let response = request
            .send()
            .await
            .context("Kubernetes' API doesn't answer")?;
        let status = response.status();
        ensure!(
            status.is_success(),
            "Kubernetes' API says {status} to {path}"
        );
        let body = response
            .bytes()
            .await
            .context("Kubernetes' API broke off")?;
        serde_json::from_slice(&body).context("Kubernetes' API sent no JSON")
    }
}

/// The ExternalIPs of a Node.
fn external_addresses(node: &Value) -> Vec<IpAddr> {
    let addresses = node["status"]["addresses"].as_array();
    let external = addresses
        .into_iter()
        .flatten()
        .filter(|address| address["type"] == "ExternalIP");
    external
        .filter_map(|address| address["address"].as_str()?.parse().ok())
        .collect()
}

/// Addresses and names at which a Service's load balancer takes traffic.
fn ingress_addresses(service: &Value) -> (Vec<IpAddr>, Vec<String>) {
    let points = service["status"]["loadBalancer"]["ingress"].as_array();
    let (mut ips, mut hosts) = (Vec::new(), Vec::new());
    for point in points.into_iter().flatten() {
        if let Some(ip) = point["ip"].as_str().and_then(|ip| ip.parse().ok()) {
            ips.push(ip);
        } else if let Some(host) = point["hostname"].as_str() {
            hosts.push(host.to_owned());
        }
    }
    (ips, hosts)
}

/// The address that a STUN server sees us at (RFC 8489). Good where a machine has a public address of its own behind one-to-one NAT, since
/// ports then stay what they are.
async fn mapped_address(server: SocketAddr) -> anyhow::Result<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut request = Message::new();
    request.new_transaction_id()?;
    BINDING_REQUEST.add_to(&mut request)?;
    request.write_header();
    socket.send(&request.raw).await?;

    let mut datagram = [0; 1280];
    let length = tokio::time::timeout(TIMEOUT, socket.recv(&mut datagram)).await;
    let length = length.context("the STUN server doesn't answer")??;
    let mut answer = Message::new();
    answer.unmarshal_binary(datagram.get(..length).unwrap_or_default())?;
    if answer.typ != BINDING_SUCCESS || answer.transaction_id != request.transaction_id {
        bail!("the STUN server answers {}", answer.typ);
    }
    let mut mapped = XorMappedAddress::default();
    mapped.get_from(&answer)?;
    Ok(mapped.ip)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_reached_at_its_external_addresses() {
        let node = json!({"status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
            {"type": "Hostname", "address": "node-1"},
        ]}});
        let found = external_addresses(&node);
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["198.51.100.1", "2001:db8::1"]
        );
        assert!(external_addresses(&json!({"status": {}})).is_empty());
        assert!(external_addresses(&json!([1])).is_empty());
    }

    #[test]
    fn a_load_balancer_is_reached_at_addresses_or_names() {
        let service = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}, {"hostname": "lb.example.com"}, {}]}}});
        let (ips, hosts) = ingress_addresses(&service);
        assert_eq!(ips, ["198.51.100.2".parse::<IpAddr>().expect("valid")]);
        assert_eq!(hosts, ["lb.example.com"]);
        assert!(
            ingress_addresses(&json!({"status": {"loadBalancer": {}}}))
                .0
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_stun_server_tells_our_address() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let address = server.local_addr().expect("bound");
        let answering = tokio::spawn(async move {
            let mut datagram = [0; 1280];
            let (length, from) = server.recv_from(&mut datagram).await.expect("received");
            let mut request = Message::new();
            request
                .unmarshal_binary(&datagram[..length])
                .expect("a message");
            assert_eq!(request.typ, BINDING_REQUEST);
            let mut answer = Message::new();
            answer.set_type(BINDING_SUCCESS);
            answer.transaction_id = request.transaction_id;
            answer.write_header();
            let mapped = XorMappedAddress {
                ip: [198, 51, 100, 3].into(),
                port: 9,
            };
            mapped.add_to(&mut answer).expect("added");
            server.send_to(&answer.raw, from).await.expect("sent");
        });
        let found = mapped_address(address).await.expect("found");
        assert_eq!(found.to_string(), "198.51.100.3");
        answering.await.expect("answered");
    }

    #[tokio::test]
    async fn outside_of_kubernetes_the_reason_is_told() {
        let account = tempfile::tempdir().expect("tempdir");
        let error = Api::new("https://127.0.0.1:1", account.path())
            .err()
            .expect("no token");
        assert!(
            format!("{error:#}").contains("no token for Kubernetes' API"),
            "{error:#}"
        );
    }
}
