//! An etcd that wants to know who asks: certificates, users, tokens that expire.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// An authority and what it vouches for, as PEM files.
struct Certificates {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).expect("a certificate");
        write(&directory.path().join("ca.pem"), &certificate.pem());
        Self {
            directory,
            issuer: Issuer::new(parameters, key),
        }
    }

    /// A certificate for `name` and its key.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("signed");
        let paths = ["pem", "key"].map(|kind| self.path(&format!("{name}.{kind}")));
        let [certificate_path, key_path] = paths;
        write(&certificate_path, &certificate.pem());
        write(&key_path, &key.serialize_pem());
        (certificate_path, key_path)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

#[tokio::test]
async fn nodes_and_etcd_prove_who_they_are() {
    let certificates = Certificates::new();
    let (own, other) = (Certificates::issue, Certificates::new());
    let (certificate, key) = own(&certificates, "127.0.0.1");
    let etcd = Etcd::spawn(
        1,
        "https",
        &[
            format!("--cert-file={}", certificate.display()),
            format!("--key-file={}", key.display()),
            format!(
                "--trusted-ca-file={}",
                certificates.path("ca.pem").display()
            ),
            "--client-cert-auth".to_owned(),
        ],
    );
    let with = |ca: PathBuf, identity: Option<(PathBuf, PathBuf)>| {
        let options = Options {
            tls: Some(Tls { ca, identity }),
            ..etcd.options()
        };
        Arc::new(start(options, "a")) as Arc<dyn Directory>
    };
    let trusted = with(certificates.path("ca.pem"), Some(own(&certificates, "a")));
    let epoch = claim_patiently(&trusted, "live/x").await;
    until_owner(&trusted, "live/x", "a", epoch).await;
    let strangers = [
        with(certificates.path("ca.pem"), None),
        with(certificates.path("ca.pem"), Some(own(&other, "b"))),
        with(other.path("ca.pem"), Some(own(&certificates, "b"))),
        with(certificates.path("missing.pem"), None),
    ];
    let claims = strangers.iter().map(|stranger| claim(stranger, "live/x"));
    for refused in join_all(claims).await {
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    assert!(strangers.iter().all(|stranger| !stranger.synced()));
}

#[tokio::test]
async fn a_token_that_expires_is_asked_for_again() {
    let etcd = Etcd::spawn(1, "http", &["--auth-token-ttl=1".to_owned()]);
    let mut client = etcd.client().await;
    let (user, password) = ("root".to_owned(), "s3cret".to_owned());
    client
        .user_add(user.as_str(), password.as_str(), None)
        .await
        .expect("a user");
    client
        .user_grant_role(user.as_str(), "root")
        .await
        .expect("its role");
    client.auth_enable().await.expect("enabled");
    let known = |id: &str, password: &str| {
        let options = Options {
            user: Some((user.clone(), password.to_owned())),
            ..etcd.options()
        };
        Arc::new(start(options, id)) as Arc<dyn Directory>
    };
    let (a, b) = (known("a", &password), known("b", &password));
    let first = claim_patiently(&a, "live/1").await;
    until_owner(&b, "live/1", "a", first).await;
    // Nobody asks anything meanwhile but the leases' keepers.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let second = claim(&b, "live/2").await.expect("with a new token");
    until_owner(&a, "live/2", "b", second).await;
    until_owner(&b, "live/1", "a", first).await;

    let wrong = known("c", "wrong");
    assert!(matches!(
        claim(&wrong, "live/3").await,
        Err(Error::Unavailable(_))
    ));
}
