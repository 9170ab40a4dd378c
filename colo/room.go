package colo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrDiskFull is returned by the checks of dry runs for copies that would hardly have room.
var ErrDiskFull = errors.New("not enough room on the disk")

// copies are files that are to be made, by the folder that they come to: how much the originals take where they are. What is there written out as zeroes takes nothing in a copy,
// and what is compressed takes more, so a dry run is told of it and the copy itself just begins.
type copies map[string]int64

// add counts a file. What can't be looked at, and block devices, count for nothing.
func (c copies) add(original, target string) {
	if st, err := os.Stat(original); err == nil && st.Mode().IsRegular() {
		if s, ok := st.Sys().(*syscall.Stat_t); ok {
			c[filepath.Dir(target)] += s.Blocks * 512
		}
	}
}

// fit is an error where there is less room than they take. Nothing is said of folders that can't be asked.
func (c copies) fit() error {
	for folder, takes := range c {
		var fs unix.Statfs_t
		if err := unix.Statfs(folder, &fs); err != nil {
			continue
		}
		if err := roomIn(folder, int64(fs.Bavail)*fs.Bsize, takes); err != nil { //nolint:gosec // no file system has so many blocks
			return err
		}
	}
	return nil
}

func roomIn(folder string, free, takes int64) error {
	if takes <= free {
		return nil
	}
	return fmt.Errorf("%s: %w: what is to be copied takes %.1f MiB where it is, and %.1f MiB are free", folder, ErrDiskFull, float64(takes)/(1<<20), float64(free)/(1<<20))
}
