package main

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// TestNodeTable: a node whose peer is of a version that it doesn't understand is seen at once, with what to do.
func TestNodeTable(t *testing.T) {
	node := func(name, peer, apart string) nodeReport {
		return nodeReport{Node: name, Status: &api.NodeStatus{Info: colo.NodeInfo{Name: name, QEMU: "11.1.3", Accel: "kvm"}, Version: "v1", Arbiter: "witness",
			Peer: &colo.PeerStatus{Info: colo.NodeInfo{Name: peer}, State: "alive", Links: []colo.LinkStatus{{Name: "link0", Up: true}}}, PeerApart: apart}}
	}
	var b strings.Builder
	if err := nodeTable(&b, []nodeReport{node("n1", "n2", "the peer speaks protocol 1: upgrade the peer"), node("n2", "n1", ""), {Node: "n3", Error: "it does not answer"}}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	for i, want := range [][]string{{"VERSIONS"}, {"n1", "APART", "1 of 1"}, {"n2", " fit "}, {"n3", "it does not answer"}, {"n1: the peer speaks protocol 1: upgrade the peer"}} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %d lacks %q:\n%s", i+1, w, b.String())
			}
		}
	}
}
