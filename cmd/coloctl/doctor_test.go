package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

func TestAskQEMU(t *testing.T) {
	f, err := askQEMU(t.Context(), []string{qemutest.QEMU(t), "-accel", "tcg"})
	must(t, err)
	if err := f.Require(qmp.ColoFeatures()...); err != nil || f.Version.QEMU.Major < colo.LeastTCG {
		t.Errorf("version %+v: %v", f.Version, err)
	}
	var found findings
	found.examineQEMU(t.Context(), &config.Config{QEMU: config.QEMU{Command: []string{qemutest.QEMU(t)}, Accel: "tcg"}})
	if len(found) != 3 || !found[0].OK || !found[1].OK || !found[2].OK {
		t.Errorf("%+v", found)
	}
}

func TestAskWhatIsNoQEMU(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"ends at once":  "echo 'no such option' >&2; exit 1",
		"says nothing":  "exec sleep 60",
		"says nonsense": `echo '{"hello":1}' >&3; exec sleep 60`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "qemu")
			must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
			ctx, cancel := contextFor(t, 3*time.Second)
			defer cancel()
			_, err := askQEMU(ctx, []string{path})
			if err == nil {
				t.Fatal("no error")
			}
			if name == "ends at once" && !strings.Contains(err.Error(), "no such option") {
				t.Errorf("what it said is not in the error: %v", err)
			}
		})
	}
}

func TestClock(t *testing.T) {
	asked := time.Now()
	for _, tt := range []struct {
		ahead, took time.Duration
		ok          bool
		says        string
	}{
		{0, 10 * time.Millisecond, true, "as here"},
		{time.Second, 10 * time.Millisecond, true, "1s apart"},
		{-3 * time.Second, 10 * time.Millisecond, false, "3s apart from this machine's"},
		{3 * time.Second, 10 * time.Millisecond, false, "3s apart"},
		{3 * time.Second, 4 * time.Second, true, "as here"}, // it may be the network
	} {
		var f findings
		f.clock("clock", asked.Add(tt.took/2+tt.ahead), asked, tt.took)
		if f[0].OK != tt.ok || !strings.Contains(f[0].Text, tt.says) || (f[0].Remedy == "") != tt.ok {
			t.Errorf("%v ahead, after %v: %+v", tt.ahead, tt.took, f[0])
		}
	}
}

func TestMemberAddress(t *testing.T) {
	c := &config.Config{Links: []config.Link{{Name: "l0", Address: "10.0.0.1"}},
		Peers: []config.Peer{{Name: "n2", API: []string{"192.0.2.2:7443"}, Links: []config.Link{{Name: "l0", Address: "10.0.0.2"}}}}}
	for addr, want := range map[string]string{
		"10.0.0.1:1": "this node's link l0", "10.0.0.2:1": "the link l0 of n2", "192.0.2.2:1": "192.0.2.2 is n2", "192.0.2.9:1": "", "witness.example.org:1": "",
	} {
		err := memberAddress(c, addr)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}

func TestPortsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer u.Close()
	port := l.Addr().(*net.TCPAddr).Port
	c := &config.Config{Links: []config.Link{{Name: "l0", Address: "127.0.0.1"}}, Ports: config.Ports{First: port, Last: port},
		Heartbeat: config.Heartbeat{Port: u.LocalAddr().(*net.UDPAddr).Port}, API: config.API{Socket: filepath.Join(t.TempDir(), "none")}}
	var f findings
	f.ports(t.Context(), c)
	if f[0].OK || !strings.Contains(f[0].Text, l.Addr().String()+"/tcp") || !strings.Contains(f[0].Text, u.LocalAddr().String()+"/udp") {
		t.Errorf("%+v", f)
	}
	// The daemon's own.
	c.API.Socket = filepath.Join(t.TempDir(), "api.sock")
	own, err := net.Listen("unix", c.API.Socket)
	must(t, err)
	defer own.Close()
	f = nil
	f.ports(t.Context(), c)
	if !f[0].OK {
		t.Errorf("with the daemon: %+v", f)
	}
}

func TestHealthRemedy(t *testing.T) {
	for _, tt := range []struct {
		item api.HealthItem
		want string
	}{
		{api.HealthItem{Name: "state"}, "log"},
		{api.HealthItem{Name: "link l0", Text: "down: the peer's heartbeats are made with another key"}, "copy the heartbeats' key"},
		{api.HealthItem{Name: "link l0", Text: "down"}, "cable"},
		{api.HealthItem{Name: "distance to n2", Text: "a round trip takes 12ms, more than max-link-rtt: no VM is protected by it"}, "nearer link"},
		{api.HealthItem{Name: "peer", Text: "no peer is configured"}, "under peers"},
		{api.HealthItem{Name: "peer", Text: "n2 is lost"}, "other host"},
	} {
		if got := healthRemedy(tt.item); !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q", tt.item, got)
		}
	}
}

func TestAdvice(t *testing.T) {
	for _, tt := range []struct {
		err  error
		says string
	}{
		{errors.New("x"), ""},
		{&taskError{task: "x", err: api.ErrUnreachable}, "is colod running there?"},
		{&taskError{"x", api.ErrUnreachable, "this instead"}, "this instead"},
	} {
		got := message(tt.err)
		if tt.says == "" && strings.Contains(got, "next:") || !strings.Contains(got, tt.says) {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.says)
		}
	}
}

func TestReachable(t *testing.T) {
	for want, r := range map[string]colo.Replication{
		"": {Encrypted: true, Links: []string{"link0"}, Listens: []string{"10.90.0.2:9001"}},
		"QEMU listens on every address of the host: 0.0.0.0:9001":                                                {Encrypted: true, Listens: []string{"10.90.0.2:9000", "0.0.0.0:9001"}},
		"not encrypted: whoever reaches 10.90.0.2:9001, [::]:9002 can read and write the VM's disks and packets": {Listens: []string{"10.90.0.2:9001", "[::]:9002"}},
		"not encrypted: whoever sees what goes by link0 and link1 can read and change it":                        {Links: []string{"link0", "link1"}, Listens: []string{}},
	} {
		got := ""
		if err := reachable(&r); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}
