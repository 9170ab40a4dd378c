// Package specs holds specs to begin with. They are read here as any other is.
package specs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
)

func TestSpecs(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no specs", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := colo.ParseSpec(text, f)
		if err != nil {
			t.Error(err)
			continue
		}
		if f == "web.yaml" && (len(s.Disks) != 2 || time.Duration(s.Protection.CheckpointDelay) != 300*time.Millisecond || s.Protection.SyncSpeed != 200e6) {
			t.Errorf("%s: read as %+v", f, s)
		}
	}
}
