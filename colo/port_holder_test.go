package colo

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestUDPHolder: who has a port is found out, whether it was bound to the address or to all.
func TestUDPHolder(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		comm, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			t.Fatal(err)
		}
		if got := udpHolder("", at); !strings.HasPrefix(got, strings.TrimSpace(string(comm))+" (process ") {
			t.Errorf("%s: %q", addr, got)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if got := udpHolder("", at); got != "" {
			t.Errorf("a free port is %s's", got)
		}
	}
}
