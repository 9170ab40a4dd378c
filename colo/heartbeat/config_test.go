package heartbeat_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

func TestConfig(t *testing.T) {
	good := func() heartbeat.Config {
		return heartbeat.Config{Node: "a", Peer: "b", Key: key, Paths: []heartbeat.Path{
			{Name: "link0", Local: addr(0, "a"), Remote: addr(0, "b")}, {Name: "link1", Local: addr(1, "a"), Remote: addr(1, "b")},
		}}
	}
	if _, err := heartbeat.New(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*heartbeat.Config){
		"node name":             func(c *heartbeat.Config) { c.Node = "" },
		"must have 1 to 63":     func(c *heartbeat.Config) { c.Peer = strings.Repeat("x", 64) },
		"node and peer":         func(c *heartbeat.Config) { c.Peer = "a" },
		"key has 5 bytes":       func(c *heartbeat.Config) { c.Key = []byte("short") },
		"below 1 ms":            func(c *heartbeat.Config) { c.Interval = time.Microsecond },
		"below three intervals": func(c *heartbeat.Config) { c.Timeout = 250 * time.Millisecond },
		"no path to b":          func(c *heartbeat.Config) { c.Paths = nil },
		"used twice":            func(c *heartbeat.Config) { c.Paths[1].Name = "link0" },
		"both listen":           func(c *heartbeat.Config) { c.Paths[1].Local = c.Paths[0].Local },
		"incomplete":            func(c *heartbeat.Config) { c.Paths[0].Remote = netip.AddrPort{} },
	} {
		c := good()
		change(&c)
		if _, err := heartbeat.New(c); !errors.Is(err, heartbeat.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
