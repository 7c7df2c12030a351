//! The VCH's directory on a datastore: paths, directories, uploads.
//!
//! Files go by `PUT` below `/folder` (vSphere Web Services SDK Programming Guide, "Accessing datastore
//! files"), under a name of their own first, so that what has its final name is whole.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, RANGE};
use hyper::{Method, Request};
use tokio::io::AsyncReadExt as _;

use crate::property::Collector;
use crate::session::{Client, Error};
use crate::task;
use crate::transport::{RequestBody, full, streamed};
use crate::types::{
    DeleteDatastoreFile_Task, DeleteVirtualDisk_Task, HostDatastoreBrowserSearchSpec,
    MakeDirectory, ManagedObject, MoveDatastoreFile_Task, SearchDatastore_Task,
};

/// How long an upload may take. 10 GiB at 3 MB/s.
const UPLOAD: Duration = Duration::from_secs(3600);
/// How much of a file is read at a time.
const PIECE: usize = 256 << 10;

/// What requests below `/folder` need on the datastore.
pub const FILE_PRIVILEGES: &[&str] = &["Datastore.Browse", "Datastore.FileManagement"];

/// A path on a datastore, written `[datastore] path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DatastorePath {
    /// The datastore's name.
    pub datastore: String,
    /// The path on it, without a slash in front.
    pub path: String,
}

impl DatastorePath {
    /// Reads `[datastore] path`.
    pub fn parse(text: &str) -> Option<Self> {
        let (datastore, path) = text.strip_prefix('[')?.split_once(']')?;
        Some(Self {
            datastore: datastore.to_owned(),
            path: path.trim_start().to_owned(),
        })
    }
}

impl fmt::Display for DatastorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.datastore, self.path)
    }
}

/// A directory of a datastore that belongs to a VCH.
#[derive(Debug, Clone)]
pub struct Directory {
    client: Client,
    /// Where the datastore is.
    datacenter: ManagedObject,
    /// The datacenter's inventory path without a slash in front, as `/folder` wants it.
    datacenter_path: String,
    root: DatastorePath,
}

impl Directory {
    /// The directory at `root`.
    pub fn new(
        client: Client,
        datacenter: ManagedObject,
        datacenter_path: &str,
        root: DatastorePath,
    ) -> Self {
        Self {
            client,
            datacenter,
            datacenter_path: datacenter_path.trim_matches('/').to_owned(),
            root,
        }
    }

    /// A path in it.
    pub fn file(&self, name: &str) -> DatastorePath {
        DatastorePath {
            datastore: self.root.datastore.clone(),
            path: format!("{}/{name}", self.root.path),
        }
    }

    /// Makes the directory `name` in it, and itself. That it is there already is success.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub async fn make(&self, name: &str) -> Result<(), Error> {
        let manager = self
            .client
            .manager("file manager", |content| &content.fileManager)?;
        let make = MakeDirectory {
            _this: manager,
            name: self.file(name).to_string(),
            datacenter: Some(self.datacenter.clone()),
            createParentDirectories: Some(true),
        };
        match self.client.call(&make).await {
            Err(error) if error.is("FileAlreadyExists") => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// Whether there is such a file.
    ///
    /// # Errors
    ///
    /// The server does not say.
    pub async fn has(&self, file: &DatastorePath) -> Result<bool, Error> {
        let what = "looking for";
        let mut request = Request::new(full(""));
        *request.method_mut() = Method::HEAD;
        let patience = Duration::from_secs(60);
        let mut status = self.send(what, request, file, patience).await?;
        if matches!(status, 405 | 501) {
            // A server that knows no HEAD: its first byte says as much.
            let mut request = Request::new(full(""));
            let first = hyper::header::HeaderValue::from_static("bytes=0-0");
            request.headers_mut().insert(RANGE, first);
            status = self.send(what, request, file, patience).await?;
        }
        match status {
            // 416: it is there, and has no first byte.
            200..=299 | 416 => Ok(true),
            404 => Ok(false),
            status => Err(Error::File {
                what,
                place: file.to_string(),
                status,
            }),
        }
    }

    /// Uploads a local file under another name, and gives it its own when it is whole.
    ///
    /// # Errors
    ///
    /// The local file cannot be read, or the server does not take it.
    pub async fn upload(
        &self,
        collector: &Collector,
        local: &Path,
        to: &DatastorePath,
    ) -> Result<(), Error> {
        let unreadable = |source: std::io::Error| Error::Local {
            path: local.to_owned(),
            source,
        };
        let file = tokio::fs::File::open(local).await.map_err(unreadable)?;
        let length = file.metadata().await.map_err(unreadable)?.len();
        let partial = DatastorePath {
            datastore: to.datastore.clone(),
            path: format!("{}.partial", to.path),
        };
        let what = "uploading";
        let mut request = Request::new(streamed(pieces(file)));
        *request.method_mut() = Method::PUT;
        let headers = request.headers_mut();
        headers.insert(CONTENT_LENGTH, length.into());
        let binary = hyper::header::HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, binary);
        match self.send(what, request, &partial, UPLOAD).await? {
            200..=299 => {}
            status => {
                return Err(Error::File {
                    what,
                    place: partial.to_string(),
                    status,
                });
            }
        }
        self.rename(collector, &partial, to).await
    }

    /// Writes a small file.
    ///
    /// # Errors
    ///
    /// The server does not take it.
    pub async fn put(&self, file: &DatastorePath, bytes: Vec<u8>) -> Result<(), Error> {
        let what = "uploading";
        let mut request = Request::new(full(bytes));
        *request.method_mut() = Method::PUT;
        let (status, _) = self
            .ask(what, request, file, Duration::from_secs(60))
            .await?;
        match status {
            200..=299 => Ok(()),
            status => Err(Error::File {
                what,
                place: file.to_string(),
                status,
            }),
        }
    }

    /// Reads a small file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// The server does not give it.
    pub async fn get(&self, file: &DatastorePath) -> Result<Option<Bytes>, Error> {
        let what = "reading";
        let request = Request::new(full(""));
        let (status, body) = self
            .ask(what, request, file, Duration::from_secs(60))
            .await?;
        match status {
            200..=299 => Ok(Some(body)),
            404 => Ok(None),
            status => Err(Error::File {
                what,
                place: file.to_string(),
                status,
            }),
        }
    }

    /// Gives a file another name. What has that name already is replaced by what is the same.
    async fn rename(
        &self,
        collector: &Collector,
        from: &DatastorePath,
        to: &DatastorePath,
    ) -> Result<(), Error> {
        let manager = self
            .client
            .manager("file manager", |content| &content.fileManager)?;
        let rename = MoveDatastoreFile_Task {
            _this: manager,
            sourceName: from.to_string(),
            sourceDatacenter: Some(self.datacenter.clone()),
            destinationName: to.to_string(),
            destinationDatacenter: Some(self.datacenter.clone()),
            force: Some(true),
        };
        task::run(&self.client, collector, &rename, &mut task::quiet).await?;
        Ok(())
    }

    /// Removes a file or a directory. That there is none is success.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub async fn remove(&self, collector: &Collector, file: &DatastorePath) -> Result<(), Error> {
        let manager = self
            .client
            .manager("file manager", |content| &content.fileManager)?;
        let remove = DeleteDatastoreFile_Task {
            _this: manager,
            name: file.to_string(),
            datacenter: Some(self.datacenter.clone()),
        };
        gone(task::run(&self.client, collector, &remove, &mut task::quiet).await)
    }

    /// Removes the directory itself where nothing is in it any more; whether it did. That there is none is
    /// success. `browser` is the datastore's.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub async fn remove_if_empty(
        &self,
        collector: &Collector,
        browser: ManagedObject,
    ) -> Result<bool, Error> {
        let search = SearchDatastore_Task {
            _this: browser,
            datastorePath: self.root.to_string(),
            searchSpec: Some(HostDatastoreBrowserSearchSpec {
                matchPattern: vec!["*".into()],
            }),
        };
        let found = task::run(&self.client, collector, &search, &mut task::quiet).await;
        match found {
            Err(error) if error.is("FileNotFound") => return Ok(true),
            Err(error) => return Err(error),
            Ok(Some(found)) if found.children_named("file").next().is_none() => {}
            Ok(_) => return Ok(false),
        }
        self.remove(collector, &self.root).await.map(|()| true)
    }

    /// Removes a disk, with all its files. That there is none is success.
    ///
    /// # Errors
    ///
    /// The server refuses, as it does while a machine that is on has it.
    pub async fn remove_disk(
        &self,
        collector: &Collector,
        disk: &DatastorePath,
    ) -> Result<(), Error> {
        let manager = self.client.manager("virtual disk manager", |content| {
            &content.virtualDiskManager
        })?;
        let remove = DeleteVirtualDisk_Task {
            _this: manager,
            name: disk.to_string(),
            datacenter: Some(self.datacenter.clone()),
        };
        gone(task::run(&self.client, collector, &remove, &mut task::quiet).await)
    }

    /// The datacenter.
    pub fn datacenter(&self) -> &ManagedObject {
        &self.datacenter
    }

    async fn send(
        &self,
        what: &'static str,
        request: Request<RequestBody>,
        file: &DatastorePath,
        patience: Duration,
    ) -> Result<u16, Error> {
        let (status, _) = self.ask(what, request, file, patience).await?;
        Ok(status)
    }

    async fn ask(
        &self,
        what: &'static str,
        mut request: Request<RequestBody>,
        file: &DatastorePath,
        patience: Duration,
    ) -> Result<(u16, Bytes), Error> {
        let uri = format!(
            "/folder/{}?dcPath={}&dsName={}",
            escape(&file.path, true),
            escape(&self.datacenter_path, false),
            escape(&file.datastore, false)
        );
        *request.uri_mut() = uri.parse().map_err(|_| Error::File {
            what,
            place: file.to_string(),
            status: 400,
        })?;
        let response = self.client.send_file(what, request, patience).await?;
        Ok((response.status().as_u16(), response.into_body()))
    }
}

fn gone<T>(answer: Result<T, Error>) -> Result<(), Error> {
    match answer {
        Err(error) if error.is("FileNotFound") => Ok(()),
        answer => answer.map(drop),
    }
}

/// A file, piece by piece.
pub(super) fn pieces(
    file: tokio::fs::File,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + Sync {
    futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece).await?;
        piece.truncate(count);
        Ok((count > 0).then(|| (Bytes::from(piece), file)))
    })
}

/// Percent-encoding of what stands in a URL (RFC 3986): all but unreserved characters, and slashes of a path.
fn escape(text: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if plain || (slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datastore_paths_read_back_as_they_are_written() {
        let path = DatastorePath::parse("[ds 1] a/b c.vmdk").unwrap();
        assert_eq!(
            (path.datastore.as_str(), path.path.as_str()),
            ("ds 1", "a/b c.vmdk")
        );
        assert_eq!(path.to_string(), "[ds 1] a/b c.vmdk");
        assert_eq!(DatastorePath::parse("a/b"), None);
    }

    #[test]
    fn names_in_urls_are_escaped() {
        assert_eq!(escape("a b/c&d", true), "a%20b/c%26d");
        assert_eq!(escape("a/ü", false), "a%2F%C3%BC");
    }
}
