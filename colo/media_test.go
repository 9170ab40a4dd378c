package colo_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/pairtest"
)

// TestMedia: a guest has a CD-ROM and a read-only disk. It is not protected while the other node has none or other ones, runs on meanwhile, and reads
// both on the other node after the first has died.
func TestMedia(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	dir, err := os.MkdirTemp("/tmp", "colo")
	must(t, err)
	defer os.RemoveAll(dir)
	contents := map[string][]byte{"cd.iso": bytes.Repeat([]byte("a CD-ROM\n"), 1<<17), "tools.raw": bytes.Repeat([]byte("read-only\n"), 1<<16)}
	for name, c := range contents {
		contents[name] = c[:len(c)/2048*2048]
	}
	put := func(node, file string, content []byte) {
		must(t, os.MkdirAll(filepath.Join(dir, node), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, node, file), content, 0o644))
	}
	for name, c := range contents {
		put("n1", name, c)
	}
	p := pairtest.New(t, pairtest.Options{Dir: dir, Modules: []string{"ata_piix", "sr_mod"}, Disks: []colo.DiskSpec{
		{Name: "cd", File: "cd.iso", Media: colo.MediaCDROM},
		{Name: "tools", File: "tools.raw", ReadOnly: true},
	}})
	must(t, p.Nodes["n1"].Start(t.Context(), pairtest.VM))
	p.Boot()
	protect := func() error { return p.Nodes["n1"].Protect(t.Context(), pairtest.VM, colo.ProtectOptions{}) }
	if err := protect(); !errors.Is(err, blockrepl.ErrMediumMissing) || !strings.Contains(err.Error(), "cd.iso") {
		t.Errorf("without images on n2: %v", err)
	}
	put("n2", "cd.iso", contents["cd.iso"])
	put("n2", "tools.raw", bytes.ToUpper(contents["tools.raw"]))
	var mismatch *colo.PeerMismatchError
	if err := protect(); !errors.As(err, &mismatch) || !strings.Contains(mismatch.What, "tools") {
		t.Errorf("with another image on n2: %v", err)
	}
	if s := p.Status("n1"); s.State != colo.Solo {
		t.Errorf("after that n1 is %s", s.State)
	}
	put("n2", "tools.raw", contents["tools.raw"])
	p.Protect("n1")
	sums := map[string]string{}
	for name, c := range contents {
		sums[name] = fmt.Sprintf("%x", sha256.Sum256(c))
	}
	for _, node := range []string{"n1", "n2"} {
		d := p.Status(node).Disks
		if len(d) != 3 || !d[1].ReadOnly || !d[1].InSync || d[1].SHA256 != sums["cd.iso"] || d[2].SHA256 != sums["tools.raw"] || d[0].ReadOnly {
			t.Errorf("%s: %+v", node, d)
		}
	}
	p.Kill("n1")
	p.AwaitState("n2", colo.Solo)
	for device, name := range map[string]string{"sr0": "cd.iso", "vdb": "tools.raw"} {
		if got := strings.TrimSpace(p.Get("/device?name=" + device)); got != sums[name] {
			t.Errorf("the guest reads %s of %s instead of %s", got, device, sums[name])
		}
	}
	must(t, os.Remove(filepath.Join(dir, "n1", "cd.iso")))
	if d := p.Status("n1").Disks[1]; d.InSync || d.SHA256 != "" {
		t.Errorf("n1's image is gone: %+v", d)
	}
}
