package blockrepl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/qemutest"
)

// TestBackupScratchFull: what the guest overwrites has no room any more, whether that is seen coming or not. The backup fails, and no write of the guest does.
func TestBackupScratchFull(t *testing.T) {
	ctx := testContext(t)
	a := newHost(t, "a", Raw)
	small := filepath.Join(a.dir, "small")
	must(t, os.Mkdir(small, 0o700))
	asRoot(t, "a small file system", unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m"))
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 0 32M")
	s := qemutest.ServeNBD(t, map[string][]byte{"vda": make([]byte, 64*mib)})
	for _, hidden := range []bool{false, true} {
		o := a.toServer(ctx, at(s, ""), small)
		dir := small
		if hidden { // the room of another file system is looked at
			dir = filepath.Join(a.dir, "large")
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.Symlink(o.Targets["vda"], filepath.Join(dir, "vda")))
			o.Targets["vda"] = filepath.Join(dir, "vda")
		}
		o.Speed = 4 * mib
		begun, ended := make(chan struct{}), make(chan error, 1)
		first := begun
		o.OnProgress = func(int64, int64) {
			if first != nil {
				close(first)
				first = nil
			}
		}
		go func() { ended <- Backup(ctx, a.c, a.disks, o) }()
		<-begun
		a.io(ctx, 0, "write -P 0x21 12M 16M")
		a.io(ctx, 0, "read -P 0x21 12M 16M")
		err := <-ended
		if err == nil || !strings.Contains(err.Error(), dir) || hidden && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v", err)
		}
		a.backupClean(ctx, "after a full scratch image", o)
		a.io(ctx, 0, "write -P 0x22 12M 16M")
	}
}

// TestBackupScratchBounded: no daemon watches a backup's jobs any more, and the guest overwrites more than there is room for. QEMU itself stops at the limit,
// which all disks share, and no write of the guest fails.
func TestBackupScratchBounded(t *testing.T) {
	ctx := testContext(t)
	a := newHost(t, "a", Raw, QCOW2)
	a.startPrimary(ctx)
	o := a.toServer(ctx, BackupServer{}, a.dir)
	o.scratch = 8 * mib
	must(t, o.boundScratch(a.disks))
	files, length := []*os.File{}, int64(0)
	for i, d := range a.disks {
		a.io(ctx, i, "write -P 0x11 0 32M")
		node, err := o.backupTargetNode(d)
		must(t, err)
		must(t, a.c.BlockdevAdd(ctx, node))
		f, err := os.Open(o.Targets[d.Name])
		must(t, err)
		defer f.Close()
		files = append(files, f)
		must(t, os.Remove(o.Targets[d.Name]))
	}
	must(t, transaction(ctx, a.c, a.disks, o.actions))
	taken := func() (all int64) {
		t.Helper()
		length = 0
		for _, f := range files {
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st)) //nolint:gosec // a descriptor
			all += st.Blocks * 512
			length += st.Size
		}
		return all
	}
	for i := range a.disks { // the first MiB of each fits
		a.io(ctx, i, "write -P 0x21 0 1M")
	}
	if got := taken(); got < 2*mib || got > o.scratch {
		t.Errorf("%d bytes were kept of 2 MiB that were overwritten", got)
	}
	for i := range a.disks {
		a.io(ctx, i, "write -P 0x22 0 24M")
		a.io(ctx, i, "write -P 0x23 24M 8M")
		a.io(ctx, i, "flush")
		a.io(ctx, i, "read -P 0x22 0 24M")
		a.io(ctx, i, "read -P 0x23 24M 8M")
	}
	if got := taken(); got > o.scratch || length > o.scratch {
		t.Errorf("%d bytes are taken, in files of %d; the limit is %d", got, length, o.scratch)
	}
	must(t, EndBackup(ctx, a.c, a.disks))
	a.backupClean(ctx, "after the limit was reached", o)
	o = a.toServer(ctx, BackupServer{}, a.dir)
	o.scratch = mib
	if err := o.boundScratch(a.disks); !errors.Is(err, ErrScratchFull) {
		t.Errorf("half a MiB for each is enough: %v", err)
	}
}

func TestScratchFits(t *testing.T) {
	for _, c := range []struct {
		free, all uint64
		ok        bool
	}{
		{1 << 30, 1 << 40, true}, {1<<30 - 1, 1 << 40, false}, {50 << 20, 1000 << 20, true}, {49 << 20, 1000 << 20, false}, {0, 0, true},
	} {
		room, err := scratchFits("/x", c.free, c.all)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrScratchFull) || room > int64(c.free) { //nolint:gosec // a size
			t.Errorf("%+v: %d %v", c, room, err)
		}
	}
}
