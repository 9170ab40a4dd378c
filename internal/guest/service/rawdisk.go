package service

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

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

// FlushTimes is the answer to /flush.
type FlushTimes struct {
	// Micros is how long each write with its flush took, in microseconds of the guest's clock.
	Micros []int64 `json:"us"`
}

// Flush writes a few bytes so many times, one behind the other from the disk's beginning, and flushes each.
func (d *RawDisk) Flush(size, times int64, seed uint64) (FlushTimes, error) {
	if size <= 0 || times <= 0 || times > MaxFlushes || size > d.size/times {
		return FlushTimes{}, fmt.Errorf("%d times %d bytes: there is room for %d, and time for %d", times, size, d.size, MaxFlushes)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	data := make([]byte, size)
	if _, err := io.ReadFull(blob.NewReader(size, seed), data); err != nil {
		return FlushTimes{}, err
	}
	var out FlushTimes
	for i := range times {
		begun := time.Now()
		if _, err := d.file.WriteAt(data, i*size); err != nil {
			return out, err
		}
		if err := d.file.Sync(); err != nil {
			return out, err
		}
		out.Micros = append(out.Micros, time.Since(begun).Microseconds())
	}
	return out, nil
}

// MaxFlushes bounds one /flush request.
const MaxFlushes = 10000

// Close closes the disk.
func (d *RawDisk) Close() error { return d.file.Close() }

// rawArgs reads the numbers of a request to the second disk, or answers why not.
func (s *HTTP) rawArgs(w http.ResponseWriter, r *http.Request, names ...string) ([]int64, bool) {
	if s.Raw == nil {
		http.Error(w, "this guest has no second disk", http.StatusServiceUnavailable)
		return nil, false
	}
	args := make([]int64, len(names))
	for i, name := range names {
		var err error
		if args[i], err = number(r, name, 0); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return nil, false
		}
	}
	return args, true
}

func (s *HTTP) flush(w http.ResponseWriter, r *http.Request) {
	args, ok := s.rawArgs(w, r, "size", "times", "seed")
	if !ok {
		return
	}
	times, err := s.Raw.Flush(args[0], args[1], uint64(args[2]))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, times)
}

func (s *HTTP) raw(w http.ResponseWriter, r *http.Request) {
	args, ok := s.rawArgs(w, r, "offset", "size", "seed")
	if !ok {
		return
	}
	if err := s.Raw.Write(args[0], args[1], uint64(args[2])); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, args[1])
}
