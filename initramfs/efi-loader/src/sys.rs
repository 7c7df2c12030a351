//! The firmware's calls, by number of bytes and of arguments as in the UEFI
//! specification 2.10, and safe to call from the rest of the program.
//!
//! Every table the firmware hands out outlives this program and is used from
//! its one thread, until the kernel's stub ends boot services and does not
//! come back.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr::{self, NonNull};

/// `EFI_STATUS`: the top bit marks an error.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(usize);

impl Status {
    const ERROR: usize = 1 << (usize::BITS - 1);
    /// No error.
    pub const SUCCESS: Status = Status(0);
    const INVALID_PARAMETER: Status = Status(Self::ERROR | 2);
    const UNSUPPORTED: Status = Status(Self::ERROR | 3);
    /// A buffer has an impossible length.
    pub const BAD_BUFFER_SIZE: Status = Status(Self::ERROR | 4);
    const BUFFER_TOO_SMALL: Status = Status(Self::ERROR | 5);
    /// A file breaks off.
    pub const END_OF_FILE: Status = Status(Self::ERROR | 31);

    /// Warnings, which have the top bit clear, count as success.
    fn check(self) -> Result<(), Status> {
        if self.0 & Self::ERROR == 0 {
            Ok(())
        } else {
            Err(self)
        }
    }
}

type Handle = *mut c_void;

#[derive(Clone, Copy)]
#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

/// Section 9.1.1.
const LOADED_IMAGE: Guid = Guid(
    0x5b1b31a1,
    0x9562,
    0x11d2,
    [0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);
/// Section 10.2.
const DEVICE_PATH: Guid = Guid(
    0x09576e91,
    0x6d3f,
    0x11d2,
    [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);
/// Section 13.4.
const FILE_SYSTEM: Guid = Guid(
    0x964e5b22,
    0x6459,
    0x11d2,
    [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b],
);
/// Section 13.2.
const LOAD_FILE_2: Guid = Guid(
    0x4006c0c1,
    0xfcb3,
    0x403e,
    [0x99, 0x6d, 0x4a, 0x6c, 0x87, 0x24, 0xe0, 0x6d],
);
/// `LINUX_EFI_INITRD_MEDIA_GUID` of the kernel's `include/linux/efi.h`.
const LINUX_INITRD: Guid = Guid(
    0x5568e427,
    0x68fc,
    0x4f3d,
    [0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc, 0x68],
);

/// A call of a table that this program has no use for.
type Unused = usize;

#[repr(C)]
struct TableHeader([u64; 3]);

#[repr(C)]
struct SystemTable {
    header: TableHeader,
    vendor: *const u16,
    revision: u32,
    console_in: [Unused; 2],
    console_out_handle: Handle,
    console_out: *mut TextOutput,
    standard_error: [Unused; 2],
    runtime: *mut RuntimeServices,
    boot: *mut BootServices,
}

#[repr(C)]
struct TextOutput {
    reset: Unused,
    output_string: unsafe extern "efiapi" fn(*mut TextOutput, *const u16) -> Status,
}

#[repr(C)]
struct RuntimeServices {
    header: TableHeader,
    time_to_monotonic_count: [Unused; 10],
    reset_system: unsafe extern "efiapi" fn(u32, Status, usize, *const c_void) -> !,
}

#[repr(C)]
struct BootServices {
    header: TableHeader,
    priority_and_pages: [Unused; 5],
    allocate_pool: unsafe extern "efiapi" fn(u32, usize, *mut *mut c_void) -> Status,
    free_pool: Unused,
    events: [Unused; 6],
    install_protocol:
        unsafe extern "efiapi" fn(*mut Handle, *const Guid, u32, *const c_void) -> Status,
    reinstall_protocol: Unused,
    uninstall_protocol: unsafe extern "efiapi" fn(Handle, *const Guid, *const c_void) -> Status,
    handle_protocol: unsafe extern "efiapi" fn(Handle, *const Guid, *mut *mut c_void) -> Status,
    reserved_to_configuration: [Unused; 5],
    load_image: unsafe extern "efiapi" fn(
        bool,
        Handle,
        *const u8,
        *const c_void,
        usize,
        *mut Handle,
    ) -> Status,
    start_image: unsafe extern "efiapi" fn(Handle, *mut usize, *mut *mut u16) -> Status,
}

#[repr(C)]
struct LoadedImage {
    revision: u32,
    parent: Handle,
    system: *mut SystemTable,
    device: Handle,
    file_path: *const u8,
    reserved: usize,
    options_bytes: u32,
    options: *const u16,
}

#[repr(C)]
struct FileSystem {
    revision: u64,
    open_volume: unsafe extern "efiapi" fn(*mut FileSystem, *mut *mut FileProtocol) -> Status,
}

#[repr(C)]
struct FileProtocol {
    revision: u64,
    open: unsafe extern "efiapi" fn(
        *mut FileProtocol,
        *mut *mut FileProtocol,
        *const u16,
        u64,
        u64,
    ) -> Status,
    close: Unused,
    delete: Unused,
    read: unsafe extern "efiapi" fn(*mut FileProtocol, *mut usize, *mut c_void) -> Status,
    write: Unused,
    position: unsafe extern "efiapi" fn(*mut FileProtocol, *mut u64) -> Status,
    set_position: unsafe extern "efiapi" fn(*mut FileProtocol, u64) -> Status,
}

/// `EFI_LOAD_FILE2_PROTOCOL`, followed by what our one instance serves.
#[repr(C)]
struct LoadFile {
    load_file: unsafe extern "efiapi" fn(
        *mut LoadFile,
        *const c_void,
        bool,
        *mut usize,
        *mut c_void,
    ) -> Status,
    file: File,
    length: usize,
}

/// A path on a volume: UTF-16 with its NUL. Made by `volume_path!`.
#[derive(Clone, Copy)]
pub struct Path(&'static [u16]);

impl Path {
    /// For `volume_path!`, which guarantees the NUL.
    pub const fn from_terminated(units: &'static [u16]) -> Self {
        assert!(matches!(units, [.., 0]));
        Path(units)
    }
}

/// A [`Path`] from an ASCII literal, at compile time.
macro_rules! volume_path {
    ($text:literal) => {{
        const UNITS: [u16; $text.len() + 1] = {
            let mut units = [0; $text.len() + 1];
            let mut at = 0;
            while at < $text.len() {
                units[at] = $text.as_bytes()[at] as u16;
                at += 1;
            }
            units
        };
        $crate::sys::Path::from_terminated(&UNITS)
    }};
}
pub(crate) use volume_path;

/// The firmware, and this program's place in it.
pub struct Firmware {
    image: Handle,
    system: NonNull<SystemTable>,
}

#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: Handle, system: *mut SystemTable) -> Status {
    let Some(system) = NonNull::new(system) else {
        return Status::INVALID_PARAMETER;
    };
    let firmware = Firmware { image, system };
    let crate::Failure(doing, status) = crate::boot(&firmware);
    firmware.print("tether boot loader: ");
    firmware.print(doing);
    firmware.print(": EFI status 0x");
    for shift in (0..16).rev() {
        let digit = (status.0 >> (4 * shift)) & 0xf;
        firmware.print(&"0123456789abcdef"[digit..digit + 1]);
    }
    firmware.print("; powering off\r\n");
    firmware.power_off(status)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in this program panics; without the tables nothing can be told.
    loop {
        core::hint::spin_loop();
    }
}

impl Firmware {
    fn system(&self) -> &SystemTable {
        // SAFETY: the pointer is the one the firmware started this program
        // with; the table is valid until boot services end.
        unsafe { self.system.as_ref() }
    }

    fn boot(&self) -> &BootServices {
        // SAFETY: as for the system table, which holds this pointer.
        unsafe { &*self.system().boot }
    }

    /// Prints ASCII on the firmware's console; without one, nowhere.
    pub fn print(&self, text: &str) {
        let console = self.system().console_out;
        if console.is_null() {
            return;
        }
        for byte in text.bytes() {
            let terminated = [u16::from(byte), 0];
            // SAFETY: a console of the firmware and a string with its NUL.
            // Whether it could print cannot be told to anyone.
            let _ = unsafe { ((*console).output_string)(console, terminated.as_ptr()) };
        }
    }

    /// Powers the machine off.
    fn power_off(&self, status: Status) -> ! {
        let shutdown = 2;
        // SAFETY: the runtime services live as long as the machine runs, and
        // no data follows the status.
        unsafe { ((*self.system().runtime).reset_system)(shutdown, status, 0, ptr::null()) }
    }

    /// `length` zeroed UTF-16 units that are never freed.
    pub fn allocate_utf16(&self, length: usize) -> Result<&'static mut [u16], Status> {
        let bytes = length.checked_mul(2).ok_or(Status::BAD_BUFFER_SIZE)?;
        let start = self.allocate(bytes)?.cast::<u16>();
        // SAFETY: pool memory is aligned to eight bytes, `bytes` long, zeroed
        // and given to nobody else.
        Ok(unsafe { core::slice::from_raw_parts_mut(start, length) })
    }

    /// `length` zeroed bytes, aligned to eight, that are never freed.
    fn allocate(&self, length: usize) -> Result<*mut u8, Status> {
        let loader_data = 2;
        let mut start = ptr::null_mut();
        // SAFETY: `start` is where the address goes; on success it points to
        // `length` bytes of which nothing is known.
        unsafe {
            (self.boot().allocate_pool)(loader_data, length, &mut start).check()?;
            ptr::write_bytes(start.cast::<u8>(), 0, length);
        }
        Ok(start.cast())
    }

    /// The interface called `protocol` of `handle`, as the firmware knows it.
    fn protocol(&self, handle: Handle, protocol: &Guid) -> Result<NonNull<c_void>, Status> {
        let mut interface = ptr::null_mut();
        // SAFETY: a GUID and where the address goes; the firmware checks the
        // handle.
        unsafe { (self.boot().handle_protocol)(handle, protocol, &mut interface) }.check()?;
        NonNull::new(interface).ok_or(Status::UNSUPPORTED)
    }

    fn loaded_image(&self, image: Handle) -> Result<NonNull<LoadedImage>, Status> {
        Ok(self.protocol(image, &LOADED_IMAGE)?.cast())
    }

    fn boot_device(&self) -> Result<Handle, Status> {
        let image = self.loaded_image(self.image)?;
        // SAFETY: the interface of this program's own image.
        Ok(unsafe { (*image.as_ptr()).device })
    }

    /// The volume this program was loaded from.
    pub fn boot_volume(&self) -> Result<Volume, Status> {
        let system: *mut FileSystem = self
            .protocol(self.boot_device()?, &FILE_SYSTEM)?
            .cast()
            .as_ptr();
        let mut root = ptr::null_mut();
        // SAFETY: a file system of the firmware, and where the root goes.
        unsafe { ((*system).open_volume)(system, &mut root) }.check()?;
        let root = NonNull::new(root).ok_or(Status::UNSUPPORTED)?;
        Ok(Volume(File(root)))
    }

    /// Lets the firmware load the program at `path` of the boot volume.
    pub fn load_image(&self, path: Path) -> Result<Image, Status> {
        let device: *const u8 = self
            .protocol(self.boot_device()?, &DEVICE_PATH)?
            .cast()
            .as_ptr();
        // SAFETY: the device path of the boot volume.
        let prefix = unsafe { device_path_length(device) }?;
        let node = FILE_PATH_NODE + 2 * path.0.len();
        let full = self.allocate(prefix + node + END_NODE.len())?;
        let mut handle = ptr::null_mut();
        // SAFETY: the buffer has room for the device's nodes, one file path
        // node and the end; `prefix` bytes of the device's path exist. The
        // image is then loaded from the path alone.
        unsafe {
            ptr::copy_nonoverlapping(device, full, prefix);
            let (media, file_path) = (4, 4);
            let [low, high] = (node as u16).to_le_bytes();
            let head = [media, file_path, low, high];
            ptr::copy_nonoverlapping(head.as_ptr(), full.add(prefix), head.len());
            ptr::copy_nonoverlapping(
                path.0.as_ptr().cast(),
                full.add(prefix + FILE_PATH_NODE),
                2 * path.0.len(),
            );
            ptr::copy_nonoverlapping(END_NODE.as_ptr(), full.add(prefix + node), END_NODE.len());
            let by_boot_manager = false;
            (self.boot().load_image)(
                by_boot_manager,
                self.image,
                full,
                ptr::null(),
                0,
                &mut handle,
            )
            .check()?;
        }
        Ok(Image {
            handle,
            interface: self.loaded_image(handle)?,
        })
    }

    /// Starts `kernel` while the kernel's stub can load `initramfs`. Returns
    /// if the kernel does.
    pub fn start_with_initramfs(&self, kernel: Image, initramfs: File) -> Result<(), Status> {
        let length = initramfs.length()?;
        let served = LoadFile {
            load_file,
            file: initramfs,
            length,
        };
        let interfaces: [(&Guid, *const c_void); 2] = [
            (&DEVICE_PATH, (&raw const INITRD_PATH).cast()),
            (&LOAD_FILE_2, (&raw const served).cast()),
        ];
        let native_interface = 0;
        let mut handle = ptr::null_mut();
        for (protocol, interface) in interfaces {
            // SAFETY: both interfaces stay where they are until they are
            // uninstalled below, or until the kernel has ended boot services.
            // If the second is refused the program powers off at once and
            // nobody follows the first, which is static.
            unsafe {
                (self.boot().install_protocol)(&mut handle, protocol, native_interface, interface)
            }
            .check()?;
        }
        // SAFETY: an image that was loaded and not started yet; nobody wants
        // its exit data.
        let started =
            unsafe { (self.boot().start_image)(kernel.handle, ptr::null_mut(), ptr::null_mut()) };
        for (protocol, interface) in interfaces {
            // SAFETY: what was installed above, on the handle it made. The
            // machine powers off next, so a refusal changes nothing.
            let _ = unsafe { (self.boot().uninstall_protocol)(handle, protocol, interface) };
        }
        started.check()
    }
}

/// Type, subtype and length of a device path node.
const NODE_HEADER: usize = 4;
const FILE_PATH_NODE: usize = NODE_HEADER;
const END_NODE: [u8; NODE_HEADER] = [0x7f, 0xff, 4, 0];
/// Far longer than any; a longer one is a damaged one.
const DEVICE_PATH_LIMIT: usize = 4096;

/// A vendor's media node with Linux' initrd GUID, then the end.
#[repr(C)]
struct InitrdPath {
    node: [u8; NODE_HEADER],
    guid: Guid,
    end: [u8; NODE_HEADER],
}

static INITRD_PATH: InitrdPath = InitrdPath {
    node: [4, 3, 20, 0],
    guid: LINUX_INITRD,
    end: END_NODE,
};

/// Bytes of the nodes of `path` before its end node.
///
/// # Safety
/// `path` is a device path: nodes that each say their length, and an end.
unsafe fn device_path_length(path: *const u8) -> Result<usize, Status> {
    let mut length = 0;
    while length < DEVICE_PATH_LIMIT {
        // SAFETY: `length` bytes of nodes lie behind; none was the end, so a
        // header follows.
        let header = unsafe { path.add(length).cast::<[u8; NODE_HEADER]>().read() };
        let node = usize::from(u16::from_le_bytes([header[2], header[3]]));
        if header[..2] == END_NODE[..2] {
            return Ok(length);
        }
        if node < NODE_HEADER {
            break;
        }
        length += node;
    }
    Err(Status::INVALID_PARAMETER)
}

/// The kernel's stub asks twice: with no buffer for the length, then with one.
///
/// # Safety
/// Called by firmware or kernel through the installed protocol, with the
/// arguments of `EFI_LOAD_FILE2_PROTOCOL.LoadFile`.
unsafe extern "efiapi" fn load_file(
    this: *mut LoadFile,
    _path: *const c_void,
    by_boot_manager: bool,
    length: *mut usize,
    buffer: *mut c_void,
) -> Status {
    if this.is_null() || length.is_null() {
        return Status::INVALID_PARAMETER;
    }
    if by_boot_manager {
        return Status::UNSUPPORTED;
    }
    // SAFETY: `this` is the instance that was installed, alive while it is;
    // `length` is the caller's, and not null.
    let (served, available) = unsafe { (&*this, length.replace((*this).length)) };
    if buffer.is_null() || available < served.length {
        return Status::BUFFER_TOO_SMALL;
    }
    // SAFETY: the caller's buffer holds `available` bytes, at least the file's.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), served.length) };
    match served.file.read_from_start(buffer) {
        Ok(()) => Status::SUCCESS,
        Err(status) => status,
    }
}

/// A volume's root directory.
pub struct Volume(File);

impl Volume {
    /// Opens a file for reading.
    pub fn open(&self, path: Path) -> Result<File, Status> {
        let root = self.0.0.as_ptr();
        let (read, no_attributes) = (1, 0);
        let mut file = ptr::null_mut();
        // SAFETY: an open directory, where the file goes, and a path with NUL.
        unsafe { ((*root).open)(root, &mut file, path.0.as_ptr(), read, no_attributes) }.check()?;
        NonNull::new(file).map(File).ok_or(Status::UNSUPPORTED)
    }
}

/// An open file. Never closed: the firmware's files end with boot services.
pub struct File(NonNull<FileProtocol>);

impl File {
    /// Length in bytes; the position becomes the start.
    pub fn length(&self) -> Result<usize, Status> {
        let end_of_file = u64::MAX;
        let mut length = 0;
        self.seek(end_of_file)?;
        // SAFETY: an open file, and where the position goes.
        unsafe { ((*self.0.as_ptr()).position)(self.0.as_ptr(), &mut length) }.check()?;
        self.seek(0)?;
        usize::try_from(length).map_err(|_| Status::BAD_BUFFER_SIZE)
    }

    /// Reads from the position on; 0 at the file's end.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Status> {
        let mut count = buffer.len();
        // SAFETY: an open file, and a buffer with its length.
        unsafe {
            ((*self.0.as_ptr()).read)(self.0.as_ptr(), &mut count, buffer.as_mut_ptr().cast())
        }
        .check()?;
        Ok(count.min(buffer.len()))
    }

    fn seek(&self, position: u64) -> Result<(), Status> {
        // SAFETY: an open file.
        unsafe { ((*self.0.as_ptr()).set_position)(self.0.as_ptr(), position) }.check()
    }

    /// Fills `buffer` with the file's first bytes.
    fn read_from_start(&self, mut buffer: &mut [u8]) -> Result<(), Status> {
        self.seek(0)?;
        while !buffer.is_empty() {
            let count = self.read(buffer)?;
            if count == 0 {
                return Err(Status::END_OF_FILE);
            }
            buffer = &mut buffer[count..];
        }
        Ok(())
    }
}

/// A program that is loaded and not started.
pub struct Image {
    handle: Handle,
    interface: NonNull<LoadedImage>,
}

impl Image {
    /// Gives the program its load options, `options` with its NUL.
    pub fn set_options(&self, options: &'static [u16]) -> Result<(), Status> {
        let bytes = u32::try_from(2 * options.len()).map_err(|_| Status::BAD_BUFFER_SIZE)?;
        // SAFETY: the interface of an image that is loaded; the options live
        // as long as the machine runs.
        unsafe {
            (*self.interface.as_ptr()).options_bytes = bytes;
            (*self.interface.as_ptr()).options = options.as_ptr();
        }
        Ok(())
    }
}
