package libvirt

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/colo"
)

var update = flag.Bool("update", false, "write the golden files anew")

func facts() Facts {
	return Facts{
		Size: func(path, _ string) (int64, error) {
			if strings.Contains(path, "chain") {
				return 0, errors.New("it needs base.qcow2: flatten it with qemu-img convert")
			}
			return 10 << 30, nil
		},
		Bridge: func(n string) (string, error) {
			if n == "lan" {
				return "br-lan", nil
			}
			return "", fmt.Errorf("libvirt's network %s is this host's alone", n)
		},
	}
}

// TestExamine compares what is said of whole definitions with golden files.
func TestExamine(t *testing.T) {
	files, err := filepath.Glob("testdata/*.xml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".live.xml") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f := facts()
		if live, err := os.ReadFile(strings.TrimSuffix(file, ".xml") + ".live.xml"); err == nil {
			f.Live, f.Snapshots, f.SavedState = string(live), 2, true
		}
		x, err := Examine(string(text), f)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		var b strings.Builder
		for _, l := range x.Findings {
			fmt.Fprintf(&b, "%d %s %s: %s\n", l.Line, l.Element, l.Verdict, l.Text)
		}
		spec, err := colo.MarshalSpec(x.Spec)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "---\n%s", spec)
		if len(x.Refused()) == 0 {
			if _, err := colo.ParseSpec(spec, file); err != nil {
				t.Errorf("%s: the spec is refused: %v", file, err)
			}
		}
		golden := strings.TrimSuffix(file, ".xml") + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s (-golden +now):\n%s", file, diff)
		}
	}
}

// TestRefusals: each of these alone makes a domain that can be protected one that can't.
func TestRefusals(t *testing.T) {
	good, err := os.ReadFile("testdata/plain.xml")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := Examine(string(good), facts()); err != nil || len(x.Refused()) > 0 {
		t.Fatalf("%v, %+v", err, x)
	}
	for _, c := range []struct{ old, new, element, want string }{
		{"</devices>", "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev></devices>", "devices/hostdev[0]", "vfio"},
		{"</devices>", "<filesystem type='mount'><driver type='virtiofs'/><source dir='/x'/><target dir='y'/></filesystem></devices>", "devices/filesystem[0]", "virtiofs"},
		{"</devices>", "<tpm model='tpm-crb'><backend type='emulator'/></tpm></devices>", "devices/tpm[0]", "TPM"},
		{"</devices>", "<shmem name='x'><model type='ivshmem-plain'/></shmem></devices>", "devices/shmem[0]", "shared"},
		{"</devices>", "<vsock model='virtio'><cid auto='yes'/></vsock></devices>", "devices/vsock[0]", "vhost"},
		{"<target dev='vda' bus='virtio'/>", "<target dev='vda' bus='virtio'/><shareable/>", "devices/disk[0]", "shared"},
		{"<target dev='vda' bus='virtio'/>", "<target dev='vda' bus='virtio'/><readonly/>", "devices/disk[0]", "read-only"},
		{"<target dev='vda' bus='virtio'/>", "<target dev='sda' bus='sata'/>", "devices/disk[0]", `bus "sata"`},
		{"type='qcow2'", "type='vmdk'", "devices/disk[0]", "vmdk"},
		{"/images/web.qcow2", "/images/chain.qcow2", "devices/disk[0]", "flatten"},
		{"<source bridge='br0'/>", "<source bridge='br0'/><virtualport type='openvswitch'/>", "devices/interface[0]", "virtualport"},
		{"<interface type='bridge'>", "<interface type='user'>", "devices/interface[0]", "user"},
		{"<interface type='bridge'>\n      <mac address='52:54:00:aa:bb:01'/>\n      <source bridge='br0'/>", "<interface type='direct'>\n      <mac address='52:54:00:aa:bb:01'/>\n      <source dev='eth0' mode='bridge'/>", "devices/interface[0]", "macvtap"},
		{"<interface type='bridge'>\n      <mac address='52:54:00:aa:bb:01'/>\n      <source bridge='br0'/>", "<interface type='network'>\n      <mac address='52:54:00:aa:bb:01'/>\n      <source network='default'/>", "devices/interface[0]", "this host's alone"},
		{"<model type='virtio'/>", "<model type='vmxnet3'/>", "devices/interface[0]", "vmxnet3"},
		{"arch='x86_64'", "arch='aarch64'", "os/type", "aarch64"},
		{"<boot dev='hd'/>", "<loader readonly='yes' type='pflash'>/x.fd</loader>", "os/loader", "UEFI"},
		{"<domain type='kvm'>", "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>", "commandline", "-foo"},
		{"<domain type='kvm'>", "<domain type='xen'>", "name", "xen"},
	} {
		text := strings.Replace(string(good), c.old, c.new, 1)
		if text == string(good) {
			t.Fatalf("%q is not in the definition", c.old)
		}
		x, err := Examine(text, facts())
		if err != nil {
			t.Errorf("%s: %v", c.new, err)
			continue
		}
		if r := x.Refused(); len(r) != 1 || r[0].Element != c.element || !strings.Contains(r[0].Text, c.want) || r[0].Line == 0 {
			t.Errorf("%s: %+v", c.new, r)
		}
	}
}

func FuzzExamine(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.xml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		x, err := Examine(text, facts())
		if err == nil && x.Spec == nil {
			t.Error("neither a spec nor an error")
		}
	})
}

func TestDomainUUID(t *testing.T) {
	a, b := domainUUID("1"), domainUUID("2")
	if a == b || a != domainUUID("1") || len(a) != 36 || a[14] != '5' {
		t.Errorf("%s, %s", a, b)
	}
}

// TestDomainXML pins what libvirt is told: both copies of a VM are made of it, and a change of it would change the machine of a guest that is to be
// protected again by a node with the other version.
func TestDomainXML(t *testing.T) {
	text, err := domainXML(colo.StartRequest{
		Spec: &colo.Spec{Name: "web", Memory: 256 << 20, VCPUs: 2, Machine: "pc", CPU: "qemu64,+ssse3", Boot: colo.Boot{Kernel: "/k", Append: "a=1 & <b>"}},
		ID:   "id-1", QEMU: "/usr/bin/qemu-system-x86_64", Accel: "tcg", Args: []string{"-blockdev", `{"driver":"file"}`}, Serial: "/run/coloctl/web/serial.log",
	})
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/domain.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), text); diff != "" {
		t.Error(diff)
	}
	if _, err := domainXML(colo.StartRequest{Spec: &colo.Spec{Name: "web"}, Args: []string{"a\nb"}}); err == nil {
		t.Error("an argument with a line end was accepted")
	}
}
