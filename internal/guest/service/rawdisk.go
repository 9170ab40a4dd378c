package service

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

// RawDisk is a disk without a file system, to make much of it dirty at once. It is safe for concurrent use.
type RawDisk struct {
	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenRawDisk opens a block device, or a file in tests.
func OpenRawDisk(path string) (*RawDisk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &RawDisk{file: f, size: size}, nil
}

// Write puts a blob at an offset and returns when it is flushed.
func (d *RawDisk) Write(offset, size int64, seed uint64) error {
	if offset < 0 || size < 0 || size > d.size || offset > d.size-size {
		return fmt.Errorf("%d bytes at %d are not within the disk's %d", size, offset, d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := io.Copy(io.NewOffsetWriter(d.file, offset), blob.NewReader(size, seed)); err != nil {
		return err
	}
	return d.file.Sync()
}

// Close closes the disk.
func (d *RawDisk) Close() error { return d.file.Close() }

func (s *HTTP) raw(w http.ResponseWriter, r *http.Request) {
	if s.Raw == nil {
		http.Error(w, "this guest has no second disk", http.StatusServiceUnavailable)
		return
	}
	var args [3]int64
	for i, name := range []string{"offset", "size", "seed"} {
		var err error
		if args[i], err = number(r, name, 0); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if err := s.Raw.Write(args[0], args[1], uint64(args[2])); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, args[1])
}
