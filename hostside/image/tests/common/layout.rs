//! Writes OCI image layouts and docker archives.

use std::fs;
use std::io::Write;
use std::path::Path;

use image::digest::Digest;
use serde_json::{Value, json};

use super::tar::Tar;

#[derive(Debug, Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }
}

/// The files of a layout, by path.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<Value>,
}

impl Layout {
    pub fn blob(&mut self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        self.files
            .push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        (digest, bytes.len())
    }

    pub fn descriptor(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let (digest, size) = self.blob(bytes);
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
    }

    /// A manifest's descriptor for an image of these layers.
    pub fn image(&mut self, layers: &[Vec<u8>], packing: Packing, process: Value) -> Value {
        let config = config(layers, process);
        let config = self.descriptor(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{}", packing.suffix());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.descriptor(&media_type, &packing.pack(layer)))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Puts a descriptor into the index, under `tag`.
    pub fn add(&mut self, mut descriptor: Value, tag: &str) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(descriptor);
    }

    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        let mut files = self.files.clone();
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        files.push((
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        files
    }

    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (path, bytes) in self.all() {
            fs::write(directory.join(path), bytes).unwrap();
        }
    }

    pub fn archive(&self) -> Vec<u8> {
        let files = self.all();
        files
            .iter()
            .fold(Tar::new(), |tar, (path, bytes)| tar.file(path, bytes))
            .end()
    }
}

pub fn config(layers: &[Vec<u8>], process: Value) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    json!({
        "architecture": "amd64", "os": "linux", "config": process,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// A layout of one image, tagged `latest`.
pub fn simple(layers: &[Vec<u8>], packing: Packing) -> Layout {
    let mut layout = Layout::default();
    let descriptor = layout.image(layers, packing, json!({"Cmd": ["sh"]}));
    layout.add(descriptor, "latest");
    layout
}

/// What `docker save` wrote before it wrote OCI layouts: a directory for each layer.
pub fn docker_archive(layers: &[Vec<u8>], tags: &[&str]) -> Tar {
    let config = config(layers, json!({"Cmd": ["sh"]})).to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut tar = Tar::new().file(&name, &config);
    let mut paths = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let path = format!("layer{index}/layer.tar");
        tar = tar.file(&path, layer);
        paths.push(path);
    }
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": paths}]);
    tar.file("manifest.json", manifest.to_string())
}
