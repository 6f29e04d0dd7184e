//! The way to a cluster's API server: which one, as whom, and what to say when that fails.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::cli::cluster::ClusterFlags;
use crate::error::{ExitCode, Failure};

/// A client, and the namespace that is meant.
///
/// # Errors
/// When no configuration is found, it does not say what it must, or no client can be made of it. Nothing is sent yet.
pub async fn connect(flags: &ClusterFlags) -> Result<(Client, String), Failure> {
    let config = configuration(flags).await?;
    let namespace = flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let url = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| {
        Failure::new(ExitCode::Usage, format!("failed to prepare the way to {url}"))
            .because(&error)
            .hint("check the certificates and the user in the kubeconfig")
    })?;
    Ok((client, namespace))
}

/// In the order of kubectl: the file that is named, `KUBECONFIG`, `~/.kube/config`, and in a pod its service account.
async fn configuration(flags: &ClusterFlags) -> Result<Config, Failure> {
    let options = KubeConfigOptions { context: flags.context.clone(), cluster: None, user: None };
    let file = match &flags.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).map(Some),
        None => match Kubeconfig::read() {
            // A file of the default place may be missing; one that is there and broken is not passed over.
            Err(KubeconfigError::FindPath) => Ok(None),
            Err(KubeconfigError::ReadConfig(error, path)) if is_default(&path) && is_missing(&error) => {
                Ok(None)
            }
            read => read.map(Some),
        },
    };
    let failed = |error: &KubeconfigError| failure(error, flags);
    match file.map_err(|error| failed(&error))? {
        Some(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(|error| failed(&error)),
        None if flags.context.is_some() => Err(nowhere("there is no kubeconfig that could have a context")),
        None => Config::incluster().map_err(|_| nowhere("there is no kubeconfig, and this is no pod")),
    }
}

fn is_default(path: &Path) -> bool {
    path.ends_with(".kube/config")
}

fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

fn nowhere(why: &str) -> Failure {
    let mut failure = Failure::new(ExitCode::NotFound, "failed to find a cluster");
    failure.causes.push(why.to_owned());
    failure.hint("name the file by --kubeconfig or in KUBECONFIG")
}

fn failure(error: &KubeconfigError, flags: &ClusterFlags) -> Failure {
    let code = match error {
        KubeconfigError::ReadConfig(error, _) if is_missing(error) => ExitCode::NotFound,
        _ => ExitCode::Usage,
    };
    let hint = match (error, &flags.context) {
        (KubeconfigError::ReadConfig(..), _) => "name a readable file by --kubeconfig or in KUBECONFIG",
        (KubeconfigError::LoadContext(_) | KubeconfigError::CurrentContextNotSet, None) => {
            "name a context by --context, or set one: kubectl config use-context NAME"
        }
        (KubeconfigError::LoadContext(_), Some(_)) => {
            "kubectl config get-contexts lists the contexts of that file"
        }
        _ => "kubectl config view shows what the file says",
    };
    let mut failure = Failure::new(code, "failed to read how the cluster is reached").hint(hint);
    // The library's text has its causes in it already.
    failure.causes.push(error.to_string());
    failure
}

/// What a request that failed means to a user.
#[must_use]
pub fn refused(what: &str, error: &kube::Error) -> Failure {
    let (code, hint) = match error {
        kube::Error::Api(status) if status.code == 401 => {
            (ExitCode::Unavailable, "the credentials are not accepted, or no longer: log in again")
        }
        kube::Error::Api(status) if status.code == 403 => {
            (ExitCode::Unavailable, "ask for the role slipway-submitter in that namespace")
        }
        kube::Error::Api(status) if status.code == 404 => {
            (ExitCode::NotFound, "`launcher doctor` says what is missing")
        }
        kube::Error::Api(status) if status.code == 409 => (
            ExitCode::CannotCreate,
            "there is one of that name already: choose another with --name, or delete that one",
        ),
        kube::Error::Api(status) if status.code == 422 => {
            (ExitCode::JobFile, "`launcher schema` describes every field")
        }
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            (ExitCode::Unavailable, "`launcher doctor` says what is missing")
        }
        kube::Error::Auth(_) => (ExitCode::Unavailable, "the kubeconfig's user cannot log in"),
        _ => (ExitCode::Temporary, "is the API server up, and reachable from here?"),
    };
    let mut failure = Failure::new(code, format!("failed to {what}")).hint(hint);
    match error {
        kube::Error::Api(status) => failure.causes.push(status.message.clone()),
        // Its own text only repeats its cause.
        kube::Error::Service(error) => failure = failure.because(error.as_ref()),
        error => failure = failure.because(error),
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
apiVersion: v1
kind: Config
current-context: a
clusters:
- {name: c, cluster: {server: 'https://127.0.0.1:1'}}
contexts:
- {name: a, context: {cluster: c, user: u, namespace: team}}
- {name: broken, context: {cluster: nowhere, user: u}}
users:
- {name: u, user: {}}
";

    async fn connect_to(
        text: &str,
        context: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<String, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        let flags = ClusterFlags {
            kubeconfig: Some(path),
            context: context.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
        };
        connect(&flags).await.map(|(_, namespace)| namespace)
    }

    #[tokio::test]
    async fn the_namespace_is_the_flags_or_the_contexts() {
        assert_eq!(connect_to(FILE, None, None).await.unwrap(), "team");
        assert_eq!(connect_to(FILE, Some("a"), Some("mine")).await.unwrap(), "mine");
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_file_is_said_with_what_to_do() {
        let missing =
            ClusterFlags { kubeconfig: Some("/nonexistent/config".into()), ..ClusterFlags::default() };
        let failure = connect(&missing).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.code, ExitCode::NotFound);
        assert!(failure.to_string().contains("/nonexistent/config"), "{failure}");
        for (text, context, hint) in [
            (FILE, Some("b"), "get-contexts"),
            (FILE, Some("broken"), "config view"),
            ("apiVersion: v1\nkind: Config\n", None, "--context"),
            (": no yaml [", None, "config view"),
        ] {
            let failure = connect_to(text, context, None).await.unwrap_err();
            assert_eq!(failure.code, ExitCode::Usage, "{failure}");
            assert!(failure.hint.as_ref().is_some_and(|said| said.contains(hint)), "{failure}");
        }
    }
}
