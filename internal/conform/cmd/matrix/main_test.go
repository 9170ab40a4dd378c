package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/conform"
)

func TestTable(t *testing.T) {
	old, young := &conform.Proof{OK: true, QEMU: "7.2.22", Accel: "tcg"}, &conform.Proof{OK: true, QEMU: "11.1.3", Accel: "tcg"}
	old.Add("attach", errors.New("x|y:"), "", "")
	old.Skip("yank", "it begins with: attach")
	young.Add("accelerator", nil, "tcg", "")
	young.Add("attach", nil, "the guest stood still for 9 ms", "")
	young.Add(conform.Capabilities, nil, "x-colo with return-path", "")
	young.Add("yank", nil, "12 ms", "")
	young.Add("cut-link: "+conform.Whole, nil, "ok", "")
	young.Add("cut-link: failover", nil, "90 ms", "")
	const want = `
| QEMU, Debian's package in | 7.2.22, a, tcg | 11.1.3, b, tcg |
| --- | --- | --- |
| attach | **no**: x/y | yes |
| capabilities | not tried | x-colo with return-path |
| yank | not tried: it begins with: attach | yes |
| with a guest: scenario ` + "`cut-link`" + ` | not tried | yes |
| **protects VMs** | **no** | **yes** |

`
	if d := cmp.Diff(want, table([]column{{"a", old}, {"b", young}})); d != "" {
		t.Error(d)
	}
}

func TestReplace(t *testing.T) {
	page := "# T\n" + begin + "\nold\n" + end + "\nafter\n"
	got, err := replace(page, "new\n")
	if want := strings.Replace(page, "old", "new", 1); err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, page := range []string{"", begin + "\n", end + "\n" + begin + "\n"} {
		if _, err := replace(page, "new\n"); err == nil {
			t.Errorf("%q was accepted", page)
		}
	}
}
