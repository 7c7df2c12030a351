//! A running QEMU's guest memory, copied into a file that its children map privately.
//!
//! What is copied is what differs from where the mapping began: pages of the process's own
//! (anonymous ones) from the process, all others from the file behind the mapping, where there is one.
//! A page of zeros stays a hole. The first pass runs while the guest does; the last, with the guest
//! stopped, copies what has changed since, as far as the kernel tells (soft-dirty bits,
//! Documentation/admin-guide/mm/soft-dirty.rst), else every page of the process's own.
//!
//! The process that was copied goes on with the file as well: it is put in the place of its memory while the
//! guest stands still ([`Copy::share`]), so that parent and children have one copy of what none has written to.
//!
//! The file is sealed when it is whole: nobody can change it any more, and a balloon in a child cannot
//! punch what it gives back out of its siblings' memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Mutex, PoisonError};

use hypervisor::Cause;
use nix::libc;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};

use super::inject::{self, Mapping};

/// What the files are called that forks share.
const NAME: &str = "vch-fork";
/// Of the host, in bytes; x86-64 has no other.
const PAGE: u64 = 4096;
/// Bytes read at once.
const PIECE: usize = 1 << 20;
/// Pages looked at at once, by one of the threads that copy.
const PART: usize = 1 << 11;
/// Most threads that copy while a guest stands still.
const MOST_THREADS: usize = 4;

// Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
const SOFT_DIRTY: u64 = 1 << 55;

/// How a guest's memory lies in its QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// QEMU's process.
    pub pid: u32,
    /// Where it begins there.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Place {
    /// The number of the file of an earlier fork's that this memory is a private view of, if it is.
    fn fork_below(&self) -> io::Result<Option<u64>> {
        let all = Mapping::all(self.pid)?;
        let name = format!("/memfd:{NAME} ");
        let here = all
            .into_iter()
            .find(|mapping| mapping.start == self.address);
        let here = here.ok_or_else(|| io::Error::other("its memory is not where it was"))?;
        Ok((here.path.starts_with(&name) && here.offset == 0).then_some(here.inode))
    }

    /// The file of an earlier fork's that this memory is a private view of, if it is.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`]: the process cannot be looked into.
    pub fn below(&self) -> Result<Option<File>, Cause> {
        let open = || -> io::Result<Option<File>> {
            let Some(inode) = self.fork_below()? else {
                return Ok(None);
            };
            let all = descriptors_of(self.pid, inode)?;
            let fd = all.first().ok_or_else(|| {
                io::Error::other("the file below its memory is not among its own")
            })?;
            File::open(format!("/proc/{}/fd/{fd}", self.pid)).map(Some)
        };
        open().map_err(of_copy)
    }
}

/// By which descriptors a process has the file of this number in the host's memory.
fn descriptors_of(pid: u32, inode: u64) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that was closed meanwhile, or whose file cannot be looked at, is another's.
        let is_ours = std::fs::metadata(entry.path()).is_ok_and(|file| file.ino() == inode)
            && std::fs::read_link(entry.path()).is_ok_and(|path| {
                path.to_string_lossy()
                    .starts_with(&format!("/memfd:{NAME} "))
            });
        if is_ours {
            found.push(number);
        }
    }
    Ok(found)
}

/// What a thread that copies reads into.
struct Buffers {
    /// Of the page map.
    entries: Vec<u8>,
    data: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            entries: vec![0; PART * 8],
            data: vec![0; PIECE],
        }
    }
}

/// A copy being made.
#[derive(Debug)]
pub struct Copy {
    place: Place,
    memory: File,
    map: File,
    /// What the mapping is a private view of.
    below: Option<File>,
    base: File,
    /// Pages that were the process's own when they were last looked at.
    own: Vec<bool>,
    /// Whether the kernel tells which pages were written to.
    tracks: bool,
}

impl Copy {
    /// Opens the process's memory. `below` is the file that it is a private view of, if it is one.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]: mostly that this process may not look into the other, see ptrace(2) and Yama.
    pub fn begin(place: Place, below: Option<File>) -> Result<Self, Cause> {
        let open = |name: &str, write: bool| {
            let path = format!("/proc/{}/{name}", place.pid);
            let file = File::options().read(!write).write(write).open(&path);
            file.map_err(|source| Cause::File {
                what: "cannot look into a running QEMU by",
                path: path.into(),
                source,
            })
        };
        let base = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map(File::from)
            .map_err(|errno| of_copy(errno.into()))?;
        base.set_len(place.bytes).map_err(of_copy)?;
        let pages = usize::try_from(place.bytes / PAGE).unwrap_or(usize::MAX);
        Ok(Self {
            place,
            memory: open("mem", false)?,
            map: open("pagemap", false)?,
            below,
            base,
            own: vec![false; pages],
            tracks: tracks_writes(),
        })
    }

    /// Copies what there is while the guest goes on. Blocks.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`].
    pub fn ahead(&mut self) -> Result<(), Cause> {
        let mut ahead = || -> io::Result<()> {
            if let Some(below) = &self.below {
                copy_data(below, &self.base, self.place.bytes)?;
            }
            if self.tracks {
                self.forget_writes()?;
            }
            self.pass(1).map(drop)
        };
        ahead().map_err(of_copy)
    }

    /// Copies what has changed, now that the guest stands still, and gives the bytes copied. Blocks.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`].
    pub fn rest(&mut self) -> Result<u64, Cause> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.pass(threads.min(MOST_THREADS)).map_err(of_copy)
    }

    /// Puts the file in the place of the process's memory, which holds the same: nothing may have been written to
    /// either since the last pass, nor may be until this returns. Blocks.
    ///
    /// # Errors
    ///
    /// Why the process keeps its memory as it is.
    pub fn share(&self) -> io::Result<()> {
        let Place {
            pid,
            address,
            bytes,
        } = self.place;
        let file = format!(
            "/proc/{}/fd/{}\0",
            std::process::id(),
            self.base.as_raw_fd()
        );
        let former = match self.place.fork_below()? {
            Some(inode) => descriptors_of(pid, inode)?,
            None => Vec::new(),
        };
        inject::within(pid, |process| {
            let at = process.data(file.as_bytes())?;
            let current = i64::from(libc::AT_FDCWD).cast_unsigned();
            let how = (libc::O_RDONLY | libc::O_CLOEXEC).unsigned_abs().into();
            let fd = process.call(libc::SYS_openat, [current, at, how, 0, 0, 0])?;
            let access = (libc::PROT_READ | libc::PROT_WRITE).unsigned_abs().into();
            let kind = (libc::MAP_PRIVATE | libc::MAP_FIXED).unsigned_abs().into();
            process.call(libc::SYS_mmap, [address, bytes, access, kind, fd, 0])?;
            // As it was started (`dump-guest-core=off`).
            let advice = libc::MADV_DONTDUMP.unsigned_abs().into();
            process.call(libc::SYS_madvise, [address, bytes, advice, 0, 0, 0])?;
            // What it was a view of until now is kept by nobody for its sake.
            let how = libc::O_CLOEXEC.unsigned_abs().into();
            for old in &former {
                process.call(libc::SYS_dup3, [fd, *old, how, 0, 0, 0])?;
            }
            if !former.is_empty() {
                process.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
            }
            Ok(())
        })
    }

    /// The file, which nobody can change any more, and how many bytes it holds.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`].
    pub fn finish(self) -> Result<(File, u64), Cause> {
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.base, seals).map_err(|errno| of_copy(errno.into()))?;
        let held = self.base.metadata().map_err(of_copy)?.blocks() * 512;
        Ok((self.base, held))
    }

    fn forget_writes(&self) -> io::Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.place.pid), "4")
    }

    /// Copies every page that is the process's own and not known to be the same, so many parts at a time; gives
    /// the bytes.
    fn pass(&mut self, threads: usize) -> io::Result<u64> {
        let mut own = std::mem::take(&mut self.own);
        let parts = Mutex::new(own.chunks_mut(PART).enumerate());
        let copy = &*self;
        let work = || -> io::Result<u64> {
            let mut buffers = Buffers::default();
            let mut copied = 0;
            loop {
                let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((number, own)) = next else {
                    return Ok(copied);
                };
                copied += copy.part(number * PART, own, &mut buffers)?;
            }
        };
        let copied = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let first = work();
            let others = others.into_iter().map(|other| {
                let ended = other.join();
                ended.unwrap_or_else(|_| Err(io::Error::other("copying it panicked")))
            });
            std::iter::once(first).chain(others).sum()
        });
        self.own = own;
        copied
    }

    /// The same for some pages from `page` on.
    fn part(&self, page: usize, pages: &mut [bool], buffers: &mut Buffers) -> io::Result<u64> {
        let Buffers { entries, data } = buffers;
        let entries = &mut entries[..pages.len() * 8];
        let first = self.place.address / PAGE + page as u64;
        self.map.read_exact_at(entries, first * 8)?;
        let mut copied = 0;
        let mut run = page..page;
        for (index, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_ne_bytes(*entry);
            let number = page + index;
            let own = entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0;
            let before = std::mem::replace(&mut pages[index], own);
            if before && !own {
                self.give_back(number, data)?;
                continue;
            }
            // What was copied before and not written to since is there.
            if !own || (before && self.tracks && entry & SOFT_DIRTY == 0) {
                continue;
            }
            if run.end != number || (run.len() + 1) * PAGE as usize > PIECE {
                copied += self.copy(run, data)?;
                run = number..number;
            }
            run.end = number + 1;
        }
        Ok(copied + self.copy(run, data)?)
    }

    /// Copies some pages in a row from the process.
    fn copy(&self, run: std::ops::Range<usize>, buffer: &mut [u8]) -> io::Result<u64> {
        let bytes = &mut buffer[..run.len() * PAGE as usize];
        let offset = run.start as u64 * PAGE;
        self.read(bytes, self.place.address + offset)?;
        self.write(bytes, offset)?;
        Ok(bytes.len() as u64)
    }

    /// Reads the process's memory: at once if that is possible (process_vm_readv(2)), and else by its file, which
    /// takes the kernel twice as long.
    fn read(&self, bytes: &mut [u8], address: u64) -> io::Result<()> {
        let from = RemoteIoVec {
            base: usize::try_from(address).map_err(io::Error::other)?,
            len: bytes.len(),
        };
        let whole = bytes.len();
        let pid = Pid::from_raw(self.place.pid.cast_signed());
        match process_vm_readv(pid, &mut [io::IoSliceMut::new(bytes)], &[from]) {
            Ok(read) if read == whole => Ok(()),
            _ => self.memory.read_exact_at(bytes, address),
        }
    }

    /// Writes pages in a row, leaving holes for zeros where there is nothing yet.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Runs of pages alike, so that a piece is one write, mostly.
        let mut from = 0;
        let pages = bytes.as_chunks::<{ PAGE as usize }>().0;
        while from < pages.len() {
            let zero = is_zero(&pages[from]);
            let alike = pages[from..]
                .iter()
                .take_while(|page| is_zero(page) == zero)
                .count();
            let (start, end) = (from * PAGE as usize, (from + alike) * PAGE as usize);
            if zero {
                self.punch(offset + start as u64, (end - start) as u64)?;
            } else {
                self.base
                    .write_all_at(&bytes[start..end], offset + start as u64)?;
            }
            from += alike;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.base, flags, offset, bytes)?)
    }

    /// A page that the process gave back: it reads as what is below the mapping.
    fn give_back(&self, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let offset = number as u64 * PAGE;
        let page = &mut buffer[..PAGE as usize];
        page.fill(0);
        if let Some(below) = &self.below {
            below.read_exact_at(page, offset)?;
        }
        self.write(page, offset)
    }
}

fn is_zero(page: &[u8; PAGE as usize]) -> bool {
    page.as_chunks::<8>().0.iter().all(|word| *word == [0; 8])
}

/// Copies what a sparse file holds.
fn copy_data(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < bytes {
        let start = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(bytes);
        offset = start;
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut buffer[..length], offset)?;
            to.write_all_at(&buffer[..length], offset)?;
            offset += length as u64;
        }
    }
    Ok(())
}

/// Whether this kernel has soft-dirty bits (`CONFIG_MEM_SOFT_DIRTY`): seen on a page of our own.
fn tracks_writes() -> bool {
    let tracks = || -> io::Result<bool> {
        let mut page = vec![1u8; 2 * PAGE as usize];
        std::fs::write("/proc/self/clear_refs", "4")?;
        page[PAGE as usize] = 2;
        let address = std::hint::black_box(&page)[PAGE as usize..].as_ptr() as u64;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE * 8)?;
        Ok(u64::from_ne_bytes(entry) & SOFT_DIRTY != 0)
    };
    tracks().unwrap_or(false)
}

fn of_copy(source: io::Error) -> Cause {
    Cause::because("cannot copy the machine's memory", source)
}

#[cfg(test)]
mod tests {
    use super::super::inject::tests::Cat;
    use super::*;

    /// Memory of this process, page-aligned, as a QEMU's would lie.
    struct Guest {
        bytes: Vec<u8>,
    }

    impl Guest {
        const PAGES: usize = 600;
        /// So much that no allocator has it lying about used already (mallopt(3), `M_MMAP_THRESHOLD`).
        const ALLOCATED: usize = 48 << 20;
        /// More than a huge page away from what the allocator itself writes at the beginning.
        const BEFORE: usize = 4 << 20;

        fn new() -> Self {
            Self {
                bytes: vec![0; Self::ALLOCATED],
            }
        }

        fn start(&self) -> usize {
            Self::BEFORE
                + self.bytes[Self::BEFORE..]
                    .as_ptr()
                    .align_offset(PAGE as usize)
        }

        fn place(&self) -> Place {
            Place {
                pid: std::process::id(),
                address: self.bytes[self.start()..].as_ptr() as u64,
                bytes: Self::PAGES as u64 * PAGE,
            }
        }

        fn page(&mut self, number: usize) -> &mut [u8] {
            let start = self.start() + number * PAGE as usize;
            &mut self.bytes[start..start + PAGE as usize]
        }

        fn whole(&self) -> &[u8] {
            &self.bytes[self.start()..self.start() + Self::PAGES * PAGE as usize]
        }
    }

    fn read(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; Guest::PAGES * PAGE as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_file_holds_what_the_memory_held_when_the_last_pass_was_made() {
        let mut guest = Guest::new();
        for number in [0, 1, 2, 300, 301, 599] {
            guest.page(number).fill(number as u8 + 1);
        }
        let mut copy = Copy::begin(guest.place(), None).unwrap();
        copy.ahead().unwrap();
        guest.page(1).fill(77);
        guest.page(2).fill(0);
        guest.page(450)[4095] = 9;
        let copied = copy.rest().unwrap();
        assert!(copied >= 3 * PAGE, "{copied}");
        let (file, held) = copy.finish().unwrap();
        assert!(read(&file) == guest.whole());
        assert!(held <= 7 * PAGE, "zeros are holes: {held}");
    }

    #[test]
    fn what_is_below_a_private_mapping_is_there_where_the_process_has_nothing_of_its_own() {
        let below = tempfile::tempfile().unwrap();
        below.set_len(Guest::PAGES as u64 * PAGE).unwrap();
        below.write_all_at(&[5; 10_000], 20 * PAGE).unwrap();
        let guest = Guest::new();
        let mut copy = Copy::begin(guest.place(), Some(below.try_clone().unwrap())).unwrap();
        copy.ahead().unwrap();
        // A page that was its own for a while and then given back.
        copy.base
            .write_all_at(&[9; PAGE as usize], 21 * PAGE)
            .unwrap();
        copy.give_back(21, &mut vec![0; PIECE]).unwrap();
        let (file, _) = copy.finish().unwrap();
        // Memory of this test that was never touched is not the process's own.
        assert!(read(&file)[..200 * PAGE as usize] == read(&below)[..200 * PAGE as usize]);
    }

    #[test]
    fn nobody_changes_a_finished_copy() {
        let guest = Guest::new();
        let mut copy = Copy::begin(guest.place(), None).unwrap();
        copy.ahead().unwrap();
        let (file, _) = copy.finish().unwrap();
        assert!(file.write_at(b"x", 0).is_err());
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&file, flags, 0, PAGE).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn a_process_goes_on_with_the_file_in_the_place_of_its_memory() {
        let mut cat = Cat::start();
        let all = Mapping::all(cat.id()).unwrap();
        let heap = all.iter().find(|mapping| mapping.path == "[heap]");
        let heap = heap.expect("a heap");
        let place = Place {
            pid: cat.id(),
            address: heap.start,
            bytes: heap.end - heap.start,
        };
        assert!(place.below().unwrap().is_none());
        let mut before: Option<u64> = None;
        for _ in 0..3 {
            let mut copy = Copy::begin(place, place.below().unwrap()).unwrap();
            copy.ahead().unwrap();
            copy.rest().unwrap();
            let mut content = vec![0; usize::try_from(place.bytes).unwrap()];
            let memory = copy.memory.try_clone().unwrap();
            memory.read_exact_at(&mut content, place.address).unwrap();
            copy.share().unwrap();
            let (file, _) = copy.finish().unwrap();
            let mut shared = vec![0; content.len()];
            file.read_exact_at(&mut shared, 0).unwrap();
            assert!(shared == content);
            memory.read_exact_at(&mut shared, place.address).unwrap();
            assert!(shared == content);
            let inode = file.metadata().unwrap().ino();
            assert_eq!(place.fork_below().unwrap(), Some(inode));
            assert_eq!(descriptors_of(place.pid, inode).unwrap().len(), 1);
            if let Some(before) = before.replace(inode) {
                let kept = descriptors_of(place.pid, before).unwrap();
                assert_eq!(kept, [0; 0], "what nobody needs is let go");
            }
            cat.copies(b"it runs\n");
        }
        cat.ends_well();
    }
}
