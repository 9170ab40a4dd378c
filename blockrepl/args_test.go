package blockrepl

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

var twoDisks = []Disk{
	{Name: "vda", Path: "/srv/vm, 1/a.raw", Format: Raw, Size: 64 * mib, Serial: "ROOT"},
	{Name: "data-1", Path: "/srv/b.qcow2", Format: QCOW2, Size: 64 * mib},
}

func TestArgsGolden(t *testing.T) {
	golden(t, "primary-args", strings.Join(PrimaryArgs(twoDisks), "\n")+"\n")
	golden(t, "standby-args", strings.Join(StandbyArgs(twoDisks, "/run/vm"), "\n")+"\n")
	golden(t, "device-args", strings.Join(DeviceArgs(twoDisks), "\n")+"\n")
}

func TestQMPGolden(t *testing.T) {
	d, to := twoDisks[0], Address{Host: "10.0.0.2", Port: 9100, MPTCP: true, TLSCreds: "tls-vm"}
	var b strings.Builder
	for _, v := range []struct {
		name string
		arg  any
	}{
		{"target", targetNode(d, to, 2)},
		{"child", childNode(d, to, 2)},
		{"child without TLS and MPTCP", childNode(d, Address{Host: "::1", Port: 1}, 1)},
		{"mirror", mirrorJob(d, 0)},
		{"mirror with limit", mirrorJob(d, 1000)},
		{"pass", passJob(d, 0)},
		{"export", exportOf(d)},
		{"transaction of a pass", passActions(d)},
		{"transaction of Rotate", rotateActions(d)},
		{"transaction of a loss", recoverActions(d)},
	} {
		j, err := json.MarshalIndent(v.arg, "", "  ")
		must(t, err)
		b.WriteString("# " + v.name + "\n" + string(j) + "\n")
	}
	golden(t, "qmp", b.String())
}

// TestNames: whatever valid disks a VM has, no two nodes share a name, none is
// longer than QEMU's 31 bytes, and every child that is named exists.
func TestNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Names made of the prefixes' words are the ones that could collide.
		word := rapid.OneOf(
			rapid.StringMatching(`[a-z][a-z0-9-]{0,15}`),
			rapid.StringMatching(`((file|parent|hidden|active|nbd|colo|pfile)-){0,2}v[ab]`),
		).Filter(func(s string) bool { return len(s) <= 16 })
		names := rapid.SliceOfNDistinct(word, 1, 6, rapid.ID[string]).Draw(t, "names")
		var disks []Disk
		for _, n := range names {
			disks = append(disks, Disk{Name: n, Path: "/i/" + n, Format: Raw, Size: 512})
		}
		if err := Validate(disks); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{PrimaryArgs(disks), StandbyArgs(disks, "/o")} {
			seen := map[string]bool{}
			for _, n := range YankNodes(disks) {
				seen[n] = true
			}
			use := func(name string) {
				if len(name) > 31 || seen[name] {
					t.Fatalf("bad or second %q", name)
				}
				seen[name] = true
			}
			for i := 1; i < len(args); i += 2 {
				var n struct {
					Name     string          `json:"node-name"`
					File     json.RawMessage `json:"file"`
					Backing  string          `json:"backing"`
					Children []string        `json:"children"`
				}
				if err := json.Unmarshal([]byte(args[i]), &n); err != nil {
					t.Fatal(err)
				}
				below := n.Children
				if n.Backing != "" {
					below = append(below, n.Backing)
				}
				var file struct {
					Name string `json:"node-name"`
				}
				var ref string
				if json.Unmarshal(n.File, &file) == nil {
					use(file.Name)
				} else if json.Unmarshal(n.File, &ref) == nil {
					below = append(below, ref)
				}
				for _, b := range below {
					if !seen[b] {
						t.Fatalf("%s is above %q, which isn't defined before it", n.Name, b)
					}
				}
				use(n.Name)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	good := Disk{Name: "vda", Path: "/a", Format: Raw, Size: 512}
	for name, change := range map[string]func(*Disk){
		"no name":        func(d *Disk) { d.Name = "" },
		"upper case":     func(d *Disk) { d.Name = "Vda" },
		"17 bytes":       func(d *Disk) { d.Name = "abcdefghijklmnopq" },
		"relative":       func(d *Disk) { d.Path = "a" },
		"no path":        func(d *Disk) { d.Path = "" },
		"format":         func(d *Disk) { d.Format = "vmdk" },
		"no size":        func(d *Disk) { d.Size = 0 },
		"odd size":       func(d *Disk) { d.Size = 1000 },
		"long serial":    func(d *Disk) { d.Serial = "123456789012345678901" },
		"same name":      func(d *Disk) { d.Name = "vdz" },
		"same image":     func(d *Disk) { d.Path = "/x/../z" },
		"newline":        func(d *Disk) { d.Name = "vda\n" },
		"negative sizes": func(d *Disk) { d.Size = -512 },
	} {
		d := good
		change(&d)
		if err := Validate([]Disk{{Name: "vdz", Path: "/z", Format: Raw, Size: 512}, d}); !errorsIsDisk(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Validate([]Disk{good}); err != nil {
		t.Error(err)
	}
}

func errorsIsDisk(err error) bool {
	var e *DiskError
	return errors.Is(err, ErrInvalidDisk) && errors.As(err, &e)
}
