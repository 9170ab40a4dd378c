package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoE2fsprogs is returned where a program of e2fsprogs is missing.
var ErrNoE2fsprogs = errors.New("install the package e2fsprogs")

// FormatDisk makes path a raw disk image of size bytes with an empty ext4 file
// system, as the guest mounts it on its first disk. The file must not exist
// yet; after an error it doesn't.
func FormatDisk(ctx context.Context, path string, size int64) error {
	mke2fs, err := find("mke2fs")
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

// ReadFile returns a file of the guest's disk as a boot after a crash would find
// it. image is not changed: its journal is replayed in a copy at scratch, which
// is removed.
func ReadFile(ctx context.Context, image, scratch, name string) (_ []byte, err error) {
	e2fsck, err := find("e2fsck")
	if err != nil {
		return nil, err
	}
	debugfs, err := find("debugfs")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(scratch)) }()
	if err := copyFile(scratch, image); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, e2fsck, "-y", "-E", "journal_only", scratch).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) { // 1: it has mended something, which is the journal
		return nil, fmt.Errorf("e2fsck: %w: %s", err, bytes.TrimSpace(out))
	}
	var report bytes.Buffer
	cat := exec.CommandContext(ctx, debugfs, "-R", "cat /"+name, scratch)
	cat.Stderr = &report
	text, err := cat.Output()
	if err == nil && len(text) == 0 {
		err = errors.New("nothing is in it")
	}
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w: %s", name, image, err, bytes.TrimSpace(report.Bytes()))
	}
	return text, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// find looks where an unprivileged user's PATH does not.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, program)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s not found: %w", program, ErrNoE2fsprogs)
}
