package service

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestDevice(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sr0"), []byte("abc"), 0o400); err != nil {
		t.Fatal(err)
	}
	get := func(s *HTTP, name string) (int, string) {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/device?name="+name, nil))
		return w.Code, w.Body.String()
	}
	s := &HTTP{Devices: dir}
	if code, text := get(s, "sr0"); code != http.StatusOK || text != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n" {
		t.Errorf("%d, %s", code, text)
	}
	for name, want := range map[string]int{"sr1": http.StatusNotFound, "": http.StatusBadRequest, "../sr0": http.StatusBadRequest} {
		if code, text := get(s, name); code != want {
			t.Errorf("%q: %d, %s", name, code, text)
		}
	}
	if code, _ := get(&HTTP{}, "sr0"); code != http.StatusServiceUnavailable {
		t.Errorf("a guest without devices: %d", code)
	}
}
