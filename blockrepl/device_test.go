package blockrepl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asRoot skips what only root can do; CI is root.
func asRoot(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s is not allowed here: %v", what, err)
}

// loop makes a block device of size bytes.
func loop(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "volume")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	asRoot(t, "a loop device", err)
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// TestBlockDevice: a half on a block device that is larger than the disk, the other in a qcow2 file, through protection, loss and resync.
func TestBlockDevice(t *testing.T) {
	ctx := testContext(t)
	dev := loop(t, 72*mib)
	a, b := newHost(t, "a", QCOW2), newHost(t, "b", Raw)
	b.disks[0].Path = dev
	d := b.disks[0]
	im := images(t)
	must(t, im.Check(ctx, d))
	if i, err := im.Inspect(ctx, d); err != nil || !i.Device || i.Size != 72*mib {
		t.Errorf("%+v %v", i, err)
	}
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 0 4M")
	b.startStandby(ctx)
	if err := im.Check(ctx, d); !errors.Is(err, ErrInUse) {
		t.Errorf("a device that QEMU uses: %v", err)
	}
	a.protect(ctx, b, Options{Mode: Full})
	a.io(ctx, 0, "write -P 0x22 63M 1M")
	a.checkpoint(ctx)
	a.kill()
	b.promote(ctx)
	b.io(ctx, 0, "read -P 0x22 63M 1M")
	b.io(ctx, 0, "write -P 0x33 10M 64k")
	b.io(ctx, 0, "flush")
	b.kill()
	must(t, im.Check(ctx, d))
	file, err := os.Open(dev)
	must(t, err)
	defer file.Close()
	buf := make([]byte, 1)
	for at, want := range map[int64]byte{0: 0x11, 63*mib + 5: 0x22, 10 * mib: 0x33, 64 * mib: 0} {
		if _, err := file.ReadAt(buf, at); err != nil || buf[0] != want {
			t.Errorf("at %d the device has %#x, want %#x (%v)", at, buf[0], want, err)
		}
	}

	held, err := os.OpenFile(dev, os.O_RDONLY|os.O_EXCL, 0) // as a mount does
	must(t, err)
	defer held.Close()
	if err := im.Check(ctx, d); !errors.Is(err, ErrInUse) {
		t.Errorf("a device that is mounted: %v", err)
	}
	if err := im.Grow(ctx, Disk{Name: "vda", Path: dev, Format: Raw, Size: 80 * mib}); !errors.Is(err, ErrWrongSize) {
		t.Errorf("a device that is too small was grown: %v", err)
	}
}

// TestBadInput: each is a clear error, and changes nothing.
func TestBadInput(t *testing.T) {
	ctx := testContext(t)
	im := images(t)
	full, ro := t.TempDir(), t.TempDir()
	asRoot(t, "a small file system", unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	asRoot(t, "a file system", unix.Mount("tmpfs", ro, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(ro, unix.MNT_DETACH) })
	disk := func(path, format string) Disk { return Disk{Name: "vda", Path: path, Format: format, Size: 16 * mib} }
	there := disk(filepath.Join(ro, "there.raw"), Raw)
	must(t, im.Create(ctx, there))
	must(t, unix.Mount("", ro, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	h := newHost(t, "a", Raw, QCOW2)
	source, backed := filepath.Join(h.dir, "source.qcow2"), filepath.Join(h.dir, "backed.qcow2")
	if out, err := im.run(ctx, "create", "-q", "-f", QCOW2, source, "16M"); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	must(t, im.CreateBackup(ctx, backed, 16*mib, source))
	h.startPrimary(ctx)
	used := h.disks[1]
	for name, c := range map[string]struct {
		do   func() error
		want error
		dir  string
	}{
		"a missing folder":                    {func() error { return im.Create(ctx, disk(filepath.Join(h.dir, "none", "x"), Raw)) }, fs.ErrNotExist, h.dir},
		"a device that isn't there":           {func() error { return im.Create(ctx, disk("/dev/none-of-these", Raw)) }, ErrMissing, h.dir},
		"a read-only file system":             {func() error { return im.Create(ctx, disk(filepath.Join(ro, "x"), Raw)) }, unix.EROFS, ro},
		"an image there":                      {func() error { return im.Check(ctx, there) }, ErrReadOnly, ro},
		"no room for a qcow2":                 {func() error { return im.Create(ctx, disk(filepath.Join(full, "x"), QCOW2)) }, nil, full},
		"no room for a copy":                  {func() error { return im.Convert(ctx, source, QCOW2, disk(filepath.Join(full, "x"), QCOW2)) }, nil, full},
		"an image in use":                     {func() error { return im.Check(ctx, used) }, ErrInUse, h.dir},
		"an image in use, to be grown":        {func() error { used := used; used.Size *= 2; return im.Grow(ctx, used) }, ErrInUse, h.dir},
		"an image in use, to be copied":       {func() error { _, _, err := im.Source(ctx, used.Path, ""); return err }, ErrInUse, h.dir},
		"an image that is larger":             {func() error { return im.Check(ctx, Disk{Name: "vda", Path: source, Format: QCOW2, Size: 8 * mib}) }, ErrWrongSize, h.dir},
		"a backing chain":                     {func() error { return im.Check(ctx, disk(backed, QCOW2)) }, ErrBackingChain, h.dir},
		"a backing chain, to be copied":       {func() error { _, _, err := im.Source(ctx, backed, ""); return err }, ErrBackingChain, h.dir},
		"a backing chain, to be grown":        {func() error { d := disk(backed, QCOW2); d.Size *= 2; return im.Grow(ctx, d) }, ErrBackingChain, h.dir},
		"a copy over an image that is there":  {func() error { return im.Convert(ctx, source, QCOW2, disk(backed, QCOW2)) }, ErrExists, h.dir},
		"something that is no image":          {func() error { _, _, err := im.Source(ctx, h.dir, ""); return err }, ErrNotRegular, h.dir},
		"something that isn't of that format": {func() error { _, _, err := im.Source(ctx, source, "vmdk"); return err }, nil, h.dir},
	} {
		before := listing(t, c.dir)
		err := c.do()
		switch {
		case err == nil:
			t.Errorf("%s: no error", name)
		case c.want != nil && !errors.Is(err, c.want):
			t.Errorf("%s: %v", name, err)
		default:
			t.Logf("%s: %v", name, err)
		}
		if after := listing(t, c.dir); after != before {
			t.Errorf("%s has changed something:\n%s\n%s", name, before, after)
		}
	}
}

// listing is what a folder holds, with sizes and times.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && !e.IsDir() {
			fmt.Fprintf(&b, "%s %d %s\n", path, info.Size(), info.ModTime())
		}
		return err
	}))
	return b.String()
}
