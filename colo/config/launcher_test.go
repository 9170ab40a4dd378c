package config

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo/libvirt"
)

const launcherBase = `
node: n1
links: [{name: a, address: 10.0.0.1}]
heartbeat: {key-file: hb.key}
arbiter: {kind: none}
tls: {identity: n1.pem, trust: ca.crt}
`

func TestLauncher(t *testing.T) {
	for text, want := range map[string]string{
		"launcher: virtualbox":                                          `launcher: "virtualbox": expected colod or libvirt`,
		"libvirt: {socket: /run/x}":                                     "libvirt: is only for launcher: libvirt",
		"launcher: libvirt\nlibvirt: {uri: xen:///system}":              `libvirt.uri: "xen:///system": expected`,
		"launcher: libvirt\nqemu: {command: [ld.so, qemu], accel: tcg}": "libvirt starts QEMU by one program's path",
	} {
		if _, err := Parse([]byte(launcherBase+text), "/etc/coloctl/colod.yaml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	c, err := Parse([]byte(launcherBase+"launcher: libvirt\nlibvirt: {socket: lv/sock, log-dir: /log}"), "/etc/coloctl/colod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := libvirt.Starter{Address: libvirt.Address{Socket: "/etc/coloctl/lv/sock"}, LogDir: "/log"}
	if got := c.NodeConfig().Starter; got != want {
		t.Errorf("starter %+v, want %+v", got, want)
	}
	if c, err = Parse([]byte(launcherBase), "x.yaml"); err != nil || c.NodeConfig().Starter != nil {
		t.Errorf("a node without a launcher: %v, %+v", err, c.NodeConfig().Starter)
	}
}
