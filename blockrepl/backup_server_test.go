package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// at is how a server is named here.
func at(s *qemutest.NBD, prefix string) BackupServer {
	return BackupServer{Network: "tcp", Address: s.Address, Prefix: prefix}
}

// toServer are the options of a backup to a server, with scratch images in dir.
func (h *host) toServer(ctx context.Context, s BackupServer, dir string) BackupOptions {
	h.t.Helper()
	o := BackupOptions{Server: &s, Socket: filepath.Join(h.dir, "scan"), Targets: map[string]string{}}
	for _, d := range h.disks {
		o.Targets[d.Name] = filepath.Join(dir, "scratch-"+d.Name)
		must(h.t, images(h.t).CreateBackup(ctx, o.Targets[d.Name], d.Size, ""))
	}
	return o
}

// backupClean fails if there is anything left of a backup, in QEMU or on disk.
func (h *host) backupClean(ctx context.Context, when string, o BackupOptions) {
	h.t.Helper()
	g, err := readGraph(ctx, h.c)
	must(h.t, err)
	jobs, err := h.c.QueryJobs(ctx)
	must(h.t, err)
	exports, err := h.c.QueryBlockExports(ctx)
	must(h.t, err)
	if len(jobs)+len(exports) > 0 {
		h.t.Errorf("%s: jobs %v, exports %v", when, jobs, exports)
	}
	for node := range g {
		if strings.HasPrefix(node, "bk") {
			h.t.Errorf("%s: node %s is left", when, node)
		}
	}
	for _, path := range o.Targets {
		if _, err := os.Lstat(path); err == nil && when != "after a refusal" {
			h.t.Errorf("%s: %s is left", when, path)
		}
	}
	if err := h.c.NBDServerStop(ctx); err == nil {
		h.t.Errorf("%s: an NBD server is left", when)
	}
}

// TestBackupToServer: a backup to an NBD server under COLO is the disks as they were when it began. The server is never in the guest's way: it may stand
// still or die, and the guest writes and makes checkpoints as before, while the backup is still waiting for it. Whatever ends a backup, nothing of it is left.
func TestBackupToServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", Raw, QCOW2)
	a.startPrimary(ctx)
	for i := range a.disks {
		a.io(ctx, i, "write -P 0x11 0 8M")
		a.io(ctx, i, "write -P 0x12 40M 8M")
		a.io(ctx, i, "write -P 0x13 67106816 2k") // the last bytes
	}
	b.startStandby(ctx)
	a.protect(ctx, b, Options{Mode: Full})

	old := bytes.Repeat([]byte{0x77}, 64*mib) // what isn't on the disk must go
	s := qemutest.ServeNBD(t, map[string][]byte{"web/vda": old, "web/vdb": append(old, old[:mib]...)})
	to := at(s, "web/")
	compare := func(what string, want map[string]string) {
		t.Helper()
		for i, d := range a.disks {
			got, err := os.ReadFile(s.File("web/" + d.Name))
			must(t, err)
			ref, err := os.ReadFile(want[d.Name])
			must(t, err)
			if !bytes.Equal(got[:64*mib], ref) {
				t.Errorf("%s: disk %s is not as it was at that moment", what, d.Name)
			}
			if rest := got[64*mib:]; !bytes.Equal(rest, old[:i*mib]) {
				t.Errorf("%s: what lies behind disk %s was written", what, d.Name)
			}
		}
	}
	// run makes a backup and calls meanwhile when it has copied something.
	run := func(o BackupOptions, meanwhile func(ended <-chan error)) error {
		t.Helper()
		begun, ended := make(chan struct{}), make(chan error, 1)
		o.OnProgress = func(done, total int64) {
			if total != 128*mib || done > total {
				t.Errorf("%d of %d bytes", done, total)
			}
			if done > 0 && begun != nil {
				close(begun)
				begun = nil
			}
		}
		wait := begun
		go func() { ended <- Backup(ctx, a.c, a.disks, o) }()
		select {
		case <-wait:
		case err := <-ended:
			t.Fatalf("the backup has ended before anything was done meanwhile: %v", err)
		}
		result := make(chan error, 1)
		go func() { result <- <-ended }()
		meanwhile(result)
		return <-result
	}
	overwrite := func(pattern int) { // what is copied already, what isn't yet, and where nothing was
		t.Helper()
		for i := range a.disks {
			a.io(ctx, i, fmt.Sprintf("write -P %#x 1M 128k", pattern))
			a.io(ctx, i, fmt.Sprintf("write -P %#x 46M 128k", pattern))
			a.io(ctx, i, fmt.Sprintf("write -P %#x 60M 128k", pattern))
			a.io(ctx, i, "discard 7M 1M")
		}
	}

	before := a.copies(ctx, "before")
	o := a.toServer(ctx, to, a.dir)
	o.Speed = 24 * mib
	must(t, run(o, func(<-chan error) {
		overwrite(0x21)
		a.checkpoint(ctx)
	}))
	compare("beside a writing guest", before)
	a.backupClean(ctx, "after a backup", o)

	// A server that stands still: the guest goes on while the backup waits, and the backup does when the server is back.
	before = a.copies(ctx, "frozen")
	o = a.toServer(ctx, to, a.dir)
	o.Speed, o.Server.Patience = 24*mib, time.Hour
	must(t, run(o, func(ended <-chan error) {
		s.Freeze()
		unread, err := dialNBD(ctx, new(net.Dialer).DialContext, "unix", o.Socket, a.disks[0].backupView())
		must(t, err)
		defer unread.Close()
		unread.ask(nbdCmdRead, 0, backupRead, nil) // as by a daemon that stands still from then on
		for n := range 3 {
			overwrite(0x31 + n)
		}
		a.checkpoint(ctx)
		if len(ended) > 0 {
			t.Error("it ended too early to prove anything")
		}
		s.Thaw()
	}))
	compare("with a server that stood still for a while", before)
	a.backupClean(ctx, "after a server stood still for a while", o)

	o = a.toServer(ctx, to, a.dir)
	o.Speed, o.Server.Patience = 4*mib, time.Second
	err := run(o, func(<-chan error) { s.Freeze() })
	s.Thaw()
	if !errors.Is(err, ErrServerSilent) || !strings.Contains(err.Error(), to.Export("vd")) {
		t.Errorf("a server that stands still: %v", err)
	}
	a.backupClean(ctx, "after a server stood still", o)
	a.checkpoint(ctx)

	// With the daemon interrupted, and the peer lost in the middle.
	cctx, interrupt := context.WithCancel(ctx)
	o = a.toServer(ctx, to, a.dir)
	o.Speed, o.OnProgress = mib, func(int64, int64) { interrupt() }
	if err := Backup(cctx, a.c, a.disks, o); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	a.backupClean(ctx, "after an interruption", o)
	a.checkpoint(ctx)
	a.sameDisks(ctx, b)

	before = a.copies(ctx, "last")
	o = a.toServer(ctx, to, a.dir)
	o.Speed = 24 * mib
	must(t, run(o, func(<-chan error) {
		b.kill()
		a.lostPeer(ctx)
		overwrite(0x41)
	}))
	compare("with the peer lost meanwhile", before)
	a.backupClean(ctx, "after the peer was lost", o)

	o = a.toServer(ctx, to, a.dir)
	o.Speed = 4 * mib
	if err := run(o, func(<-chan error) { s.Kill() }); err == nil || !strings.Contains(err.Error(), to.Export("vd")) {
		t.Errorf("a server that was killed: %v", err)
	}
	a.backupClean(ctx, "after the server was killed", o)
}

// TestBackupEndRepeated: what shows the disks can't be removed at a backup's end. Its jobs, which take room, are ended all the same, and the rest is tried again.
func TestBackupEndRepeated(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	a := newHost(t, "a", Raw, QCOW2)
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 0 8M")
	s := qemutest.ServeNBD(t, map[string][]byte{"vda": make([]byte, 64*mib), "vdb": make([]byte, 64*mib)})
	o := a.toServer(ctx, at(s, ""), a.dir)
	o.Speed = mib
	used := false
	bctx, stop := context.WithCancel(ctx)
	o.OnProgress = func(int64, int64) {
		if !used {
			must(t, a.c.BlockdevAdd(ctx, map[string]any{"driver": Raw, "node-name": "user", "file": a.disks[0].backupView(), "read-only": true}))
			used = true
			stop()
		}
	}
	told := 0
	o.OnLeft = func(err error) {
		told++
		jobs, qerr := a.c.QueryJobs(ctx)
		if qerr != nil || len(jobs) > 0 {
			t.Errorf("%v: jobs %v go on: %v", err, jobs, qerr)
		}
		a.io(ctx, 0, "write -P 0x21 4M 1M")
		must(t, a.c.BlockdevDel(ctx, "user"))
	}
	if err := Backup(bctx, a.c, a.disks, o); !errors.Is(err, context.Canceled) || told != 1 {
		t.Errorf("told %d times: %v", told, err)
	}
	a.backupClean(ctx, "after an end that was repeated", o)
	a.io(ctx, 0, "read -P 0x21 4M 1M")
}

// TestBackupLeft: what a daemon that was killed in the middle of a backup to a server has left is removed, and so is an NBD server that it had just started,
// while one that serves a peer stays.
func TestBackupLeft(t *testing.T) {
	ctx := testContext(t)
	a := newHost(t, "a", Raw, QCOW2)
	a.startPrimary(ctx)
	o := a.toServer(ctx, BackupServer{}, a.dir)
	must(t, o.boundScratch(a.disks))
	for _, d := range a.disks {
		node, err := o.backupTargetNode(d)
		must(t, err)
		must(t, a.c.BlockdevAdd(ctx, node))
		must(t, os.Remove(o.Targets[d.Name]))
	}
	must(t, transaction(ctx, a.c, a.disks, o.actions))
	var nodes []struct {
		Name  string `json:"node-name"`
		Cache struct {
			NoFlush bool `json:"no-flush"`
		}
	}
	must(t, a.c.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes))
	scratch := 0
	for _, n := range nodes {
		if of := strings.HasPrefix(n.Name, "bktgt-") || strings.HasPrefix(n.Name, "bkroom-") || strings.HasPrefix(n.Name, "bkfile-"); of != n.Cache.NoFlush {
			t.Errorf("%+v: only what is scratch needs no flush", n)
		} else if of {
			scratch++
		}
	}
	if scratch != 3*len(a.disks) {
		t.Errorf("%d nodes of scratch images", scratch)
	}
	must(t, serveUnix(ctx, a.c, a.disks, o.Socket))
	must(t, a.c.BlockdevAdd(ctx, map[string]any{"driver": "snapshot-access", "node-name": a.disks[0].backupView(), "file": a.disks[0].backupFilter()}))
	must(t, a.c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: a.disks[0].backupExport(), NodeName: a.disks[0].backupView(), Name: "x"}))
	must(t, EndBackup(ctx, a.c, a.disks))
	a.backupClean(ctx, "after a daemon's end", o)

	must(t, serveUnix(ctx, a.c, a.disks, o.Socket))
	must(t, serveUnix(ctx, a.c, a.disks, o.Socket))
	must(t, a.c.NBDServerStop(ctx))

	if err := o.serve(ctx, a.c, a.disks, nil); err == nil {
		t.Error("disks without a backup's job are shown")
	}
	a.backupClean(ctx, "after nothing could be shown", o)

	b := newHost(t, "b", Raw)
	b.startStandby(ctx)
	must(t, EndBackup(ctx, b.c, b.disks))
	if exports, err := b.c.QueryBlockExports(ctx); err != nil || len(exports) != 1 {
		t.Errorf("%v %v", exports, err)
	}
	if err := serveUnix(ctx, b.c, b.disks, o.Socket); err == nil {
		t.Error("the server for the peer was stopped")
	}
}

// TestBackupServerRefusals: what is wrong with the server is said before QEMU is asked for anything, and nothing is written.
func TestBackupServerRefusals(t *testing.T) {
	ctx := testContext(t)
	disk := make([]byte, 64*mib)
	s := qemutest.ServeNBD(t, map[string][]byte{"vda": disk, "small/vda": disk[:32*mib], "ro/vda": disk, "part/vdb": disk})
	none := at(s, "")
	none.Address = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	disks := []Disk{{Name: "vda", Size: 64 * mib}}
	must(t, at(s, "").Check(ctx, disks))
	for want, to := range map[error]BackupServer{ErrNoServer: none, ErrNoExport: at(s, "none/"), ErrExportSize: at(s, "small/"), ErrExportReadOnly: at(s, "ro/")} {
		err := to.Check(ctx, disks)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), to.Export("vda")) {
			t.Errorf("%v, want %v", err, want)
		}
		t.Log(err)
	}
	both := append(disks, Disk{Name: "vdb", Size: 64 * mib})
	if err := at(s, "").Check(ctx, both); !errors.Is(err, ErrNoExport) || strings.Contains(err.Error(), "vda") {
		t.Errorf("one of two exports: %v", err)
	}
	frozen := none
	frozen.Address = s.Address
	frozen.Patience = time.Second
	s.Freeze()
	if err := frozen.Check(ctx, disks); !errors.Is(err, ErrNoServer) {
		t.Errorf("a server that stands still: %v", err)
	}
	s.Thaw()
}

func TestParseBackupServer(t *testing.T) {
	for uri, want := range map[string]BackupServer{
		"nbd://192.0.2.1":                          {Network: "tcp", Address: "192.0.2.1:10809"},
		"nbd://store:1/":                           {Network: "tcp", Address: "store:1"},
		"nbd://[2001:db8::1]/web":                  {Network: "tcp", Address: "[2001:db8::1]:10809", Prefix: "web/"},
		"nbd://store/web/monday/":                  {Network: "tcp", Address: "store:10809", Prefix: "web/monday/"},
		"nbd+unix:///?socket=/run/nbd.sock":        {Network: "unix", Address: "/run/nbd.sock"},
		"nbd+unix:///web?socket=%2Frun%2Fnbd.sock": {Network: "unix", Address: "/run/nbd.sock", Prefix: "web/"},
	} {
		got, err := ParseBackupServer(uri)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", uri, got, err)
		}
		if again, err := ParseBackupServer(strings.TrimSuffix(strings.Replace(got.Export("vda"), "vda", "", 1), "/")); err != nil || again != got {
			t.Errorf("%s: its export of vda is %s: %+v %v", uri, got.Export("vda"), again, err)
		}
	}
	for _, uri := range []string{
		"", "/backup", "nbd:", "nbd:///", "nbd:///vda?socket=/x", "nbd://store:0", "nbd://store:99999", "nbd://store:x", "nbd://me@store", "nbd://store/#x", "nbd://store?x=1",
		"nbd://store?socket=/x", "nbds://store", "http://store", "nbd+unix:///?socket=x", "nbd+unix:///", "nbd+unix://store/?socket=/x", "nbd:store", "nbd://store/%zz",
	} {
		if got, err := ParseBackupServer(uri); !errors.Is(err, ErrBadServer) {
			t.Errorf("%s: %+v %v", uri, got, err)
		}
	}
}

// TestBackupPace: a limit is one of what is read, also where there is nothing but zeroes.
func TestBackupPace(t *testing.T) {
	ctx := testContext(t)
	a := newHost(t, "a", Raw)
	a.startPrimary(ctx)
	s := qemutest.ServeNBD(t, map[string][]byte{"vda": make([]byte, 64*mib)})
	o := a.toServer(ctx, at(s, ""), a.dir)
	o.Speed = 32 * mib
	begun := time.Now()
	must(t, Backup(ctx, a.c, a.disks, o))
	if took := time.Since(begun); took < 1900*time.Millisecond {
		t.Errorf("64 MiB of zeroes at 32 MiB a second took %v", took)
	}
}
