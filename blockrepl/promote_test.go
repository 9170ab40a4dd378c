package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/qmp"
)

// TestCommitFails: a promoted secondary whose image has no room for what is in
// the overlays says so, keeps the guest's data, and isn't replicated.
func TestCommitFails(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	small := filepath.Join(b.dir, "small")
	must(t, os.Mkdir(small, 0o700))
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs the right to mount a tmpfs")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	b.disks[0].Path = filepath.Join(small, "vda.raw")
	must(t, images(t).Create(ctx, b.disks[0]))

	a.startPrimary(ctx)
	b.startStandby(ctx)
	a.protect(ctx, b, Options{})
	b.io(ctx, 0, "write -P 0x55 1M 16M")
	a.kill()
	must(t, Promote(ctx, b.c, b.disks))
	must(t, b.c.ColoLostHeartbeat(ctx))
	err := WaitCommitted(ctx, b.c, b.disks)
	if !errors.Is(err, ErrCommitFailed) || !strings.Contains(err.Error(), b.disks[0].Path) {
		t.Fatalf("%v", err)
	}
	t.Log(err)
	b.io(ctx, 0, "read -P 0x55 1M 16M")
	must(t, ReleaseOverlays(ctx, b.c, b.disks))
	b.io(ctx, 0, "read -P 0x55 1M 16M")
	if err := NewMirror(b.c, b.disks, a.to, Options{}).Sync(ctx); !errors.Is(err, ErrCommitFailed) {
		t.Errorf("sync: %v", err)
	}
}

// TestUnread: a primary dies while much that it has written lies unread before the secondary's QEMU. None of that is the promoted guest's.
func TestUnread(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	a.io(ctx, 0, "write -P 0x11 0 16M")
	a.protect(ctx, b, Options{})
	a.checkpoint(ctx)
	b.freeze()
	for i := range 24 {
		a.io(ctx, 0, fmt.Sprintf("aio_write -q -P 0x77 %dk 256k", i*256))
	}
	a.kill()
	b.thaw()
	b.promote(ctx)
	b.io(ctx, 0, "read -P 0x11 0 16M")
	must(t, ReleaseOverlays(ctx, b.c, b.disks))
	b.io(ctx, 0, "read -P 0x11 0 16M")
}

// TestWaitCommitted: it ends with the context on a standby, which is never
// promoted here, and with QEMU's end.
func TestWaitCommitted(t *testing.T) {
	ctx := testContext(t)
	h := newHost(t, "h", Raw)
	h.startStandby(ctx)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := WaitCommitted(short, h.c, h.disks); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("standby: %v", err)
	}
	must(t, h.c.Quit(ctx))
	if err := WaitCommitted(ctx, h.c, h.disks); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("QEMU is gone: %v", err)
	}
}

// TestEdges: the fallback for older QEMUs reads the same graph.
func TestEdges(t *testing.T) {
	ctx := testContext(t)
	h := newHost(t, "h", Raw, QCOW2)
	h.startStandby(ctx)
	g, err := readGraph(ctx, h.c)
	must(t, err)
	other := graph{}
	for name, n := range g {
		n.Children = nil
		other[name] = n
	}
	must(t, other.readEdges(ctx, h.c))
	edges := func(n qmp.BlockNode) []string {
		var l []string
		for _, c := range n.Children {
			l = append(l, c.Child+"="+c.NodeName)
		}
		slices.Sort(l)
		return l
	}
	if len(g) != 2*8 {
		t.Errorf("%d nodes", len(g))
	}
	for name := range g {
		if a, b := edges(g[name]), edges(other[name]); !slices.Equal(a, b) {
			t.Errorf("%s: %v and %v", name, a, b)
		}
	}
}
