package colo

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// otherUser is a Starter whose QEMUs run as somebody else.
type otherUser struct {
	Starter
	forgotten []string
}

func (*otherUser) Name() string                              { return "other" }
func (*otherUser) User(context.Context) (int, int, error)    { return 64055, 64055, nil }
func (*otherUser) Log(vm string) string                      { return "/nowhere/" + vm }
func (*otherUser) EndsWithGuest() bool                       { return true }
func (*otherUser) Check(context.Context, StartRequest) error { return nil }
func (o *otherUser) Forget(_ context.Context, vm string) error {
	o.forgotten = append(o.forgotten, vm)
	return nil
}

// TestPeersMustStartAlike: the machines would differ.
func TestPeersMustStartAlike(t *testing.T) {
	n := &Node{cfg: NodeConfig{Starter: &otherUser{}, Accel: "tcg"}, qemu: "11.1.3"}
	if err := n.compare(NodeInfo{QEMU: "11.1.3", Accel: "tcg", Starter: "other"}); err != nil {
		t.Error(err)
	}
	err := n.compare(NodeInfo{QEMU: "11.1.3", Accel: "tcg"})
	if err == nil || err.Error() != "what starts QEMU differs: other here, colod itself on the peer" {
		t.Error(err)
	}
}

// TestReach: a folder that QEMU's user may not enter is found before anything is started.
func TestReach(t *testing.T) {
	dir := t.TempDir()
	open, shut := filepath.Join(dir, "open"), filepath.Join(dir, "shut")
	for path, mode := range map[string]os.FileMode{open: 0o711, shut: 0o700} {
		if err := os.Mkdir(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := reachable(open, 64055, 64055, 1, "enter", "o+x"); err != nil {
		t.Error(err)
	}
	if err := reachable(shut, 64055, 64055, 1, "enter", "o+x"); err == nil || !strings.Contains(err.Error(), "chmod o+x "+shut) {
		t.Errorf("a closed folder: %v", err)
	}
	if err := reachable(shut, os.Geteuid(), os.Getegid(), 1, "enter", "o+x"); err != nil {
		t.Errorf("its owner: %v", err)
	}
	l := &qemuLauncher{cfg: NodeConfig{RunDir: shut, StorageDir: open}}
	if err := l.checkReach(&Spec{Name: "web"}, 64055, 64055); err == nil {
		t.Error("a closed run folder was accepted")
	}
	if err := l.checkReach(&Spec{Name: "web"}, os.Geteuid(), os.Getegid()); err != nil {
		t.Errorf("a QEMU of our own user: %v", err)
	}
}

// TestOwnFolder: what a QEMU of another user has left in its folder is gone before we write there again, and what it pointed at is not touched.
func TestOwnFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	l := &qemuLauncher{cfg: NodeConfig{RunDir: filepath.Join(dir, "run"), StorageDir: dir}}
	r := LaunchRequest{Spec: &Spec{Name: "web"}}
	overlays := filepath.Join(l.dir("web"), overlayDir)
	for _, err := range []error{
		os.WriteFile(victim, []byte("x"), 0o600), os.MkdirAll(overlays, 0o700), os.Symlink(victim, filepath.Join(overlays, "vda.active.qcow2")),
		l.handOver(r, 64055, 64055), l.ownFolder(&Spec{Name: "web"}, 64055),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if uid, _, _ := ownerOf(st); uid != 0 {
		t.Errorf("the file behind a link was given to user %d", uid)
	}
	if _, err := os.Lstat(l.dir("web")); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
}
