/** The version of the command line client; the same as package.json's, which a test holds it to. */
export const CLIENT_VERSION = '0.1.0';
