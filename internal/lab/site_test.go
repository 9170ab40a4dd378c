package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
)

// What the lab writes must be what the daemons read, with their defaults.
func TestSiteIsWhatTheDaemonsRead(t *testing.T) {
	for _, kind := range []string{config.ArbiterWitness, config.ArbiterEtcd} {
		dir := t.TempDir()
		top := &Topology{Names: NodeNames, Links: []*Link{{Name: "link0"}, {Name: "link1"}}}
		for i, l := range top.Links {
			l.Addrs = map[string]netip.Prefix{"n1": linkAddr(i, 0), "n2": linkAddr(i, 1)}
		}
		l := &Lab{Topology: top, opts: Options{Dir: dir, Arbiter: kind, HoldDown: time.Second, Assets: &Assets{
			QEMU: []string{"/ld.so", "--library-path", "/x y", "/qemu"}, QEMUImg: []string{"/qemu-img"}, Accel: "tcg",
		}}}
		if err := l.writeSite(); err != nil {
			t.Fatal(err)
		}
		for _, name := range NodeNames {
			c, err := config.Load(l.path(name, "colod.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if c.Node != name || c.HostID != name || len(c.Links) != 2 || c.Arbiter.Kind != kind || strings.Join(c.QEMU.Command, "|") != "/ld.so|--library-path|/x y|/qemu" ||
				c.StateDir != l.path(name, "state") || c.API.Socket != l.path(name, "run", "api.sock") {
				t.Errorf("%s: %+v", name, c)
			}
			if c.Heartbeat.Timeout != colo.Duration(400*time.Millisecond) || c.Recovery.Off || c.Recovery.HoldDown != colo.Duration(time.Second) {
				t.Errorf("%s: %+v %+v", name, c.Heartbeat, c.Recovery)
			}
			if _, err := c.Credentials(); err != nil {
				t.Error(err)
			}
			if _, err := config.ReadKey(c.Heartbeat.KeyFile); err != nil {
				t.Error(err)
			}
		}
		w, err := config.LoadWitness(l.path(witnessName, "witness.yaml"))
		if err != nil || w.HostID == "n1" || w.HostID == "n2" || w.Log.Format != "json" {
			t.Errorf("%+v, %v", w, err)
		}
		if _, err := w.Credentials(); err != nil {
			t.Error(err)
		}
		var contexts struct {
			Contexts []struct {
				Name, Socket, Identity, Trust string
				Nodes                         []struct {
					Name      string
					Addresses []string
				}
			}
		}
		text, err := os.ReadFile(l.path(ContextsName))
		if err == nil {
			err = yaml.Unmarshal(text, &contexts)
		}
		if err != nil || len(contexts.Contexts) != 3 {
			t.Fatalf("%+v, %v", contexts, err)
		}
		both := contexts.Contexts[2]
		if _, err := pki.Load(pki.Files{Identity: filepath.Join(dir, both.Identity), Trust: filepath.Join(dir, both.Trust)}); err != nil || len(both.Nodes) != 2 {
			t.Errorf("%+v, %v", both, err)
		}
	}
}
