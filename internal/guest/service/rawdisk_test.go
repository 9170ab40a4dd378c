package service

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/coloctl/coloctl/internal/guest/blob"
)

func TestRawDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenRawDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h := (&HTTP{Raw: d}).Handler()
	post := func(query string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/raw?"+query, nil))
		return w.Code
	}
	if code := post("offset=4096&size=100000&seed=7"); code != http.StatusOK {
		t.Fatal(code)
	}
	want := make([]byte, 1<<20)
	if _, err := io.ReadFull(blob.NewReader(100000, 7), want[4096:104096]); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk has something else (%v)", err)
	}
	for query, code := range map[string]int{
		"offset=1048576&size=1":  http.StatusInternalServerError,
		"offset=0&size=1048577":  http.StatusInternalServerError,
		"offset=x&size=1":        http.StatusBadRequest,
		"offset=1048576&size=0":  http.StatusOK,
		"offset=-1&size=1":       http.StatusBadRequest,
		"offset=0&size=1&seed=s": http.StatusBadRequest,
	} {
		if got := post(query); got != code {
			t.Errorf("%s: %d, want %d", query, got, code)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, want) {
		t.Error("a refused write has changed the disk")
	}
	var times FlushTimes
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/flush?size=512&times=3&seed=9", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &times); err != nil || len(times.Micros) != 3 {
		t.Errorf("%s, %v", w.Body, err)
	}
	for i := range 3 {
		if _, err := io.ReadFull(blob.NewReader(512, 9), want[512*i:512*i+512]); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, want) {
		t.Errorf("flushed writes are not where they belong (%v)", err)
	}
	for _, query := range []string{"size=512", "times=3", "size=1048576&times=2", "size=9223372036854775807&times=2", "size=1&times=10001", "size=0&times=0"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/flush?"+query, nil))
		if w.Code != http.StatusInternalServerError {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
	w = httptest.NewRecorder()
	(&HTTP{}).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/raw?size=1", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("without a disk: %d", w.Code)
	}
}
