package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoMke2fs is returned where mke2fs is missing.
var ErrNoMke2fs = errors.New("mke2fs not found: install the package e2fsprogs")

// FormatDisk makes path a raw disk image of size bytes with an empty ext4 file
// system, as the guest mounts it on its first disk. The file must not exist
// yet; after an error it doesn't.
func FormatDisk(ctx context.Context, path string, size int64) error {
	mke2fs, err := findMke2fs()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err == nil {
		var report bytes.Buffer
		// lazy_*_init=0: else the guest goes on writing its disk in the background
		// for minutes after the first mount, which would show in every measurement.
		format := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4",
			"-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", path)
		format.Stdout, format.Stderr = &report, &report
		if err = format.Run(); err != nil {
			err = fmt.Errorf("mke2fs %s: %w: %s", path, err, bytes.TrimSpace(report.Bytes()))
		}
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// findMke2fs looks where an unprivileged user's PATH does not.
func findMke2fs() (string, error) {
	if path, err := exec.LookPath("mke2fs"); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, "mke2fs")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", ErrNoMke2fs
}
