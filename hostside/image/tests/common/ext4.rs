//! A reader of ext4 filesystems in raw files, for tests only: written from the kernel's documentation
//! (`Documentation/filesystems/ext4`), not from the writer. It trusts what it reads and panics.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub inode: u32,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u16,
    pub size: u64,
    pub mtime: (i64, u32),
    /// Content of files and targets of symbolic links.
    pub data: Vec<u8>,
    /// How many blocks of content there are.
    pub mapped: u64,
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub struct Filesystem {
    file: File,
    block: u64,
    inodes_per_group: u32,
    tables: Vec<u64>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Filesystem {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut sb = [0; 1024];
        file.read_exact_at(&mut sb, 1024).unwrap();
        assert_eq!(u16_at(&sb, 0x38), 0xef53, "not ext4");
        let block = 1024 << u32_at(&sb, 0x18);
        let blocks = u64::from(u32_at(&sb, 4)) | u64::from(u32_at(&sb, 0x150)) << 32;
        let groups = blocks.div_ceil(u64::from(u32_at(&sb, 0x20)));
        let size = u64::from(u16_at(&sb, 0xfe));
        let tables = (0..groups).map(|group| {
            let mut descriptor = [0; 64];
            file.read_exact_at(&mut descriptor, block + group * size)
                .unwrap();
            u64::from(u32_at(&descriptor, 8)) | u64::from(u32_at(&descriptor, 0x28)) << 32
        });
        let tables = tables.collect();
        Self {
            inodes_per_group: u32_at(&sb, 0x28),
            file,
            block,
            tables,
        }
    }

    fn read(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.block as usize];
        self.file
            .read_exact_at(&mut bytes, block * self.block)
            .unwrap();
        bytes
    }

    fn extents(&self, node: &[u8], found: &mut Vec<(u64, u64, u64)>) {
        assert_eq!(u16_at(node, 0), 0xf30a, "an extent tree");
        for index in 0..usize::from(u16_at(node, 2)) {
            let entry = &node[12 + index * 12..][..12];
            if u16_at(node, 6) == 0 {
                let start = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
                found.push((
                    u64::from(u32_at(entry, 0)),
                    start,
                    u64::from(u16_at(entry, 4)),
                ));
            } else {
                let below = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                self.extents(&self.read(below), found);
            }
        }
    }

    fn xattrs(bytes: &[u8], first: usize, base: usize, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let mut at = first;
        while u32_at(bytes, at) != 0 {
            let length = usize::from(bytes[at]);
            let prefix: &[u8] = match bytes[at + 1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                index => panic!("attribute index {index}"),
            };
            let start = base + usize::from(u16_at(bytes, at + 2));
            let size = u32_at(bytes, at + 8) as usize;
            let value = if size == 0 {
                Vec::new()
            } else {
                bytes[start..start + size].to_vec()
            };
            found.insert([prefix, &bytes[at + 16..at + 16 + length]].concat(), value);
            at += (16 + length).next_multiple_of(4);
        }
    }

    pub fn inode(&self, number: u32) -> Node {
        let group = ((number - 1) / self.inodes_per_group) as usize;
        let index = u64::from((number - 1) % self.inodes_per_group);
        let mut raw = [0; 256];
        self.file
            .read_exact_at(&mut raw, self.tables[group] * self.block + index * 256)
            .unwrap();
        let mode = u16_at(&raw, 0);
        let size = u64::from(u32_at(&raw, 4)) | u64::from(u32_at(&raw, 0x6c)) << 32;
        let extra = u32_at(&raw, 0x88);
        let seconds = i64::from(u32_at(&raw, 0x10) as i32) + (i64::from(extra & 3) << 32);
        let mut node = Node {
            inode: number,
            mode,
            uid: u32::from(u16_at(&raw, 2)) | u32::from(u16_at(&raw, 0x78)) << 16,
            gid: u32::from(u16_at(&raw, 0x18)) | u32::from(u16_at(&raw, 0x7a)) << 16,
            links: u16_at(&raw, 0x1a),
            size,
            mtime: (seconds, extra >> 2),
            data: Vec::new(),
            mapped: 0,
            device: (0, 0),
            xattrs: BTreeMap::new(),
        };
        if u32_at(&raw, 0x20) & 0x8_0000 != 0 {
            let mut extents = Vec::new();
            self.extents(&raw[0x28..0x64], &mut extents);
            node.mapped = extents.iter().map(|extent| extent.2).sum();
            // Large sparse files are only looked at through `mapped`.
            if size <= 64 << 20 {
                node.data = vec![0; size as usize];
                for (logical, physical, count) in extents {
                    for index in 0..count {
                        let start = ((logical + index) * self.block) as usize;
                        let end = (start + self.block as usize).min(size as usize);
                        node.data[start..end]
                            .copy_from_slice(&self.read(physical + index)[..end - start]);
                    }
                }
            }
        } else if mode >> 12 == 0o12 {
            node.data = raw[0x28..0x28 + size as usize].to_vec();
        } else if matches!(mode >> 12, 0o2 | 0o6) {
            let (old, new) = (u32_at(&raw, 0x28), u32_at(&raw, 0x2c));
            node.device = if old != 0 {
                (old >> 8 & 0xff, old & 0xff)
            } else {
                (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xfff00)
            };
        }
        if u32_at(&raw, 160) == 0xea02_0000 {
            Self::xattrs(&raw, 164, 164, &mut node.xattrs);
        }
        let block = u64::from(u32_at(&raw, 0x68)) | u64::from(u16_at(&raw, 0x76)) << 32;
        if block != 0 {
            Self::xattrs(&self.read(block), 32, 0, &mut node.xattrs);
        }
        node
    }

    /// The entries of a directory, `.` and `..` among them.
    pub fn entries(&self, directory: &Node) -> Vec<(Vec<u8>, u32)> {
        let mut found = Vec::new();
        for block in directory.data.chunks(self.block as usize) {
            let mut at = 0;
            while at < block.len() {
                let inode = u32_at(block, at);
                let length = usize::from(block[at + 6]);
                if inode != 0 {
                    found.push((block[at + 8..at + 8 + length].to_vec(), inode));
                }
                at += usize::from(u16_at(block, at + 4));
            }
        }
        found
    }

    /// Everything by path; the root is the empty path.
    pub fn all(&self) -> BTreeMap<String, Node> {
        let mut found = BTreeMap::new();
        let mut todo = vec![(String::new(), 2)];
        while let Some((path, number)) = todo.pop() {
            let node = self.inode(number);
            if node.mode >> 12 == 0o4 {
                for (name, below) in self.entries(&node) {
                    if name != b"." && name != b".." {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        let slash = if path.is_empty() { "" } else { "/" };
                        todo.push((format!("{path}{slash}{name}"), below));
                    }
                }
            }
            assert!(
                found.insert(path.clone(), node).is_none(),
                "{path} is there twice"
            );
        }
        found
    }
}
