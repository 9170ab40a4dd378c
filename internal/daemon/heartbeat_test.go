package daemon

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

// TestHeartbeatPortIsTaken: a daemon that can't hear its peer because another program has the port says so, and who it is.
func TestHeartbeatPortIsTaken(t *testing.T) {
	s := newSite(t)
	taken, err := net.ListenPacket("udp4", strings.Replace("127.20.N.1:17789", "N", strconv.Itoa(int(s.net)), 1))
	must(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	d := s.run("n1")
	text := d.log.await(t, "has the port: end it, or set heartbeat.port")
	for _, want := range []string{"no heartbeats over link link0", taken.LocalAddr().String(), "(process "} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the log", want)
		}
	}
}
