package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cavaliergopher/cpio"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// fillShare is the part of a guest's memory that a file takes which is added to its initramfs. What the kernel unpacks fills as much memory
// again as the archive itself, and both keep their content; the kernel takes no more than half of the memory for files of an initramfs.
const fillShare = 0.36

// fillImage writes an initramfs that is image and, as a second archive behind it, a file of size bytes without a page that is zero. A guest
// with much untouched memory would be copied in no time.
func fillImage(image, to string, size int64) (err error) {
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, in)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := w.Write(make([]byte, -n&3)); err != nil { // an archive begins at a multiple of 4
		return err
	}
	archive := cpio.NewWriter(w)
	if err := archive.WriteHeader(&cpio.Header{Name: "fill", Mode: cpio.TypeReg | 0o400, Size: size, Inode: 1, Links: 1}); err != nil {
		return err
	}
	if _, err := io.Copy(archive, blob.NewReader(size, 1)); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return errors.Join(archive.Close(), w.Flush())
}
