package main

import (
	"bytes"
	"os"
	"syscall"
	"unsafe"
)

// sysMemfdCreate is memfd_create(2)'s number on x86-64, which package syscall does not know.
const sysMemfdCreate = 319

// newMemory makes a file of so many MiB that is nowhere but in memory.
func newMemory(megabytes int) (*os.File, error) {
	name := []byte("guest\x00")
	const closeOnExec = 1
	fd, _, failed := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), closeOnExec, 0)
	if failed != 0 {
		return nil, os.NewSyscallError("memfd_create", failed)
	}
	file := os.NewFile(fd, "guest memory")
	if err := file.Truncate(int64(megabytes) << 20); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// copyMemory copies a guest's memory, without what is zero in it.
func copyMemory(from *os.File) (*os.File, error) {
	info, err := from.Stat()
	if err != nil {
		return nil, err
	}
	to, err := newMemory(int(info.Size() >> 20))
	if err != nil {
		return nil, err
	}
	const chunk = 64 << 10
	buffer, zero := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < info.Size(); at += chunk {
		if _, err := from.ReadAt(buffer, at); err != nil {
			return to, err
		}
		if bytes.Equal(buffer, zero) {
			continue
		}
		if _, err := to.WriteAt(buffer, at); err != nil {
			return to, err
		}
	}
	return to, nil
}
