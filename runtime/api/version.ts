/**
 * Versions of Docker's Engine API that are spoken here. From 1.52 on clients show the sums of `system df` that the
 * engine computed; 1.24 is what clients pin that were written for any Docker of the last ten years, and 1.22 what skopeo
 * asks for images with (`docker-daemon:`).
 */
export const API_MINOR_MIN = 22;
export const API_MINOR_MAX = 52;
export const API_VERSION_MIN = `1.${API_MINOR_MIN}`;
export const API_VERSION_MAX = `1.${API_MINOR_MAX}`;
